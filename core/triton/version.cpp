#include "version.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

#include "contract.h"
#include "errors.h"
#include "json.h"
#include "sha256.h"

namespace toxicity {
namespace {

constexpr std::int64_t kMostCacheBytes = std::int64_t{1} << 40;

// The bytes of a file, mapped and not copied.
class File {
  public:
    explicit File(const std::string& path) {
        const int handle = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat about {};
        if (handle >= 0 && !fstat(handle, &about) && S_ISREG(about.st_mode)) {
            size_ = static_cast<std::size_t>(about.st_size);
            if (size_) start_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, handle, 0);
        }
        if (handle >= 0) close(handle);
        if (!size_ || start_ == MAP_FAILED)
            throw BadInput(path + " cannot be read, expected a file of the published version; run "
                           "`make export` to publish a new version");
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() { munmap(start_, size_); }
    std::string_view bytes() const { return {static_cast<const char*>(start_), size_}; }

  private:
    void* start_ = MAP_FAILED;
    std::size_t size_ = 0;
};

// The string that parameters of a configuration are, or nullptr where it is left out.
const Json* given_parameter(const Json& config, const char* name) {
    const Json* parameters = config.find("parameters");
    const Json* given = parameters ? parameters->find(name) : nullptr;
    return given ? given->find("string_value") : nullptr;
}

// A probability given so, or `otherwise`.
double share_parameter(const Json& config, const char* name, double otherwise) {
    const Json* text = given_parameter(config, name);
    if (!text) return otherwise;
    char* end = nullptr;
    const double value = std::strtod(text->text.c_str(), &end);
    if (end == text->text.c_str() || *end || !(value >= 0 && value <= 1))
        throw BadInput(std::string("the parameter ") + name + " of config.pbtxt is '" + text->text +
                       "', expected a number from 0 to 1; run `make export` to publish a new version");
    return value;
}

// A whole number given so.
std::int64_t parameter(const Json& config, const char* name, std::int64_t least, std::int64_t most) {
    const Json* text = given_parameter(config, name);
    Json number;
    number.kind = Json::Kind::number;
    number.text = text ? text->text : "";
    std::int64_t value = least - 1;
    try {
        value = number.as_integer(name);
    } catch (const BadInput&) {
    }
    if (value < least || value > most)
        throw BadInput(std::string("the parameter ") + name + " of config.pbtxt is '" + number.text +
                       "', expected a whole number from " + std::to_string(least) + " to " +
                       std::to_string(most) + "; run `make export` to publish a new version");
    return value;
}

}  // namespace

Version::Version(TRITONBACKEND_Model* model) {
    int kind = 0;
    const char* location = nullptr;
    std::uint64_t version = 0;
    triton.check(triton.BACKEND_ModelRepository(model, &kind, &location));
    triton.check(triton.BACKEND_ModelVersion(model, &version));
    number_ = std::to_string(version);
    folder_ = std::string(location) + "/" + number_ + "/";
    read_manifest();
    read_config(model);
    try {
        metrics_.emplace(version, histograms_);
    } catch (const std::runtime_error&) {
        metrics_.reset();  // a server without metrics serves all the same
    }
}

void Version::read_config(TRITONBACKEND_Model* model) {
    TRITONSERVER_Message* message = nullptr;
    const char* text = nullptr;
    std::size_t length = 0;
    triton.check(triton.BACKEND_ModelConfig(model, 1, &message));
    TRITONSERVER_Error* error = triton.SERVER_MessageSerializeToJson(message, &text, &length);
    const std::string json = error ? "" : std::string(text, length);
    triton.ok(triton.SERVER_MessageDelete(message));
    triton.check(error);
    const Json config = Json::parse(json, "the model's configuration");
    max_batch_ = static_cast<int>(parameter(config, MAX_BATCH, 1, MAX_BATCH_SIZE));
    const std::int64_t cache_bytes = parameter(config, CACHE_BYTES, 0, kMostCacheBytes);
    threshold_ = share_parameter(config, THRESHOLD, DECISION_THRESHOLD);
    if (given_parameter(config, HISTOGRAMS)) histograms_ = parameter(config, HISTOGRAMS, 0, 1) != 0;
    if (cache_bytes) cache_ = std::make_shared<LogitCache>(static_cast<std::size_t>(cache_bytes));
}

std::string Version::read_verified(const Json& files, const char* name, bool keep) const {
    const Json* said = files.find(name);
    if (!said)
        throw BadInput(folder_ + ARTIFACT_FILE + " does not list " + name +
                       "; run `make export` to publish a new version");
    const File file(folder_ + name);
    const std::string& expected = said->at("sha256").as_string("sha256");
    // What was checked is what is kept: the file may change under its mapping.
    std::string kept(keep ? file.bytes() : std::string_view());
    const std::string found = sha256(keep ? kept : file.bytes());
    if (found != expected)
        throw BadInput(folder_ + name + " is damaged: its sha256 is " + found.substr(0, 12) +
                       "..., expected " + expected.substr(0, 12) +
                       "...; run `make export` to publish a new version");
    return kept;
}

void Version::read_manifest() {
    const Json manifest = Json::parse(File(folder_ + ARTIFACT_FILE).bytes(), folder_ + ARTIFACT_FILE);
    device_ = manifest.at("device").as_string("device");
    if (device_ != "cpu" && device_ != "cuda")
        throw BadInput("the artifact's device is '" + device_ + "', expected cpu or cuda; export again");
    if (const Json* rule = manifest.find("long_text")) {
        const std::string& name = rule->at("rule").as_string("rule");
        using Rule = LongText::Rule;
        if (name != "cut" && name != "max" && name != "mean")
            throw BadInput("the artifact's long_text is '" + name + "', expected cut, max or mean; "
                           "export again");
        long_text_.rule = name == "max" ? Rule::max : name == "mean" ? Rule::mean : Rule::cut;
        long_text_.stride = static_cast<int>(rule->at("stride").as_integer("stride"));
        long_text_.windows = static_cast<int>(rule->at("windows").as_integer("windows"));
    }
    if (const Json* names = manifest.find(ATTRIBUTES))
        for (const Json& name : names->as_array(ATTRIBUTES)) {
            attributes_ += (attribute_count_++ ? "," : "") + name.as_string("an attribute");
        }
    const Json& files = manifest.at("files");
    read_verified(files, ORT_FILE, false);
    graph_ = read_verified(files, ONNX_FILE);
    tokenizer_ = std::make_shared<Tokenizer>(read_verified(files, TOKENIZER_FILE));
}

double Version::capacity_after(std::int64_t comments, double busy_s, double now_s) const {
    return instances_ * capacity_.after(comments, busy_s, now_s);
}

std::unique_ptr<Scorer> Version::scorer(int gpu) const {
    auto made = std::make_unique<Scorer>(tokenizer_, Session(folder_ + ORT_FILE, graph_, gpu), long_text_,
                                         max_batch_, cache_);
    if (made->width() != 1 + attribute_count_)
        throw BadInput("the graph has " + std::to_string(made->width() - 1) + " attributes, the artifact " +
                       std::to_string(attribute_count_) + ", expected as many; export again");
    made->warm_up();
    return made;
}

}  // namespace toxicity
