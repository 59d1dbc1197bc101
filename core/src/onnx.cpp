#include "onnx.h"

#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>

#include "contract.h"
#include "errors.h"

namespace toxicity {
namespace {

// Functions of OrtApi by their place in it (onnxruntime_c_api.h of 1.21, ORT_API_VERSION 21; the
// table only grows). Each gives an OrtStatus*, nullptr for success, unless it releases something.
enum Function : std::size_t {
    kGetErrorMessage = 2,
    kCreateEnv = 3,
    kCreateSessionFromArray = 8,
    kRun = 9,
    kCreateSessionOptions = 10,
    kSetIntraOpNumThreads = 24,
    kSetInterOpNumThreads = 25,
    kSessionGetInputCount = 30,
    kSessionGetOutputCount = 31,
    kSessionGetInputTypeInfo = 33,
    kSessionGetOutputTypeInfo = 34,
    kSessionGetInputName = 36,
    kSessionGetOutputName = 37,
    kCreateTensorWithData = 49,
    kGetTensorMutableData = 51,
    kCastTypeInfoToTensorInfo = 55,
    kGetTensorElementType = 60,
    kGetDimensionsCount = 61,
    kGetDimensions = 62,
    kGetTensorShapeElementCount = 64,
    kGetTensorTypeAndShape = 65,
    kCreateCpuMemoryInfo = 69,
    kAllocatorFree = 76,
    kGetAllocatorWithDefaultOptions = 78,
    kReleaseStatus = 93,
    kReleaseMemoryInfo = 94,
    kReleaseSession = 95,
    kReleaseValue = 96,
    kReleaseTypeInfo = 98,
    kReleaseTensorTypeAndShapeInfo = 99,
    kReleaseSessionOptions = 100,
    kAppendCuda = 204,
    kCreateCudaOptions = 205,
    kUpdateCudaOptions = 206,
    kReleaseCudaOptions = 208,
};
constexpr std::uint32_t kApiVersion = 21;
constexpr int kFloat = 1, kInt32 = 6, kInt64 = 7;  // ONNXTensorElementDataType
constexpr int kWarnings = 2;                       // OrtLoggingLevel
constexpr int kArenaAllocator = 1, kDefaultMemory = 0;

struct OrtApiBase {
    const void* const* (*get_api)(std::uint32_t version);
    const char* (*get_version)();
};

std::string first_line(const char* text) {
    const std::string_view all(text);
    return std::string(all.substr(0, std::min(all.find('\n'), std::size_t{300})));
}

}  // namespace

class OnnxRuntime {
  public:
    // The library at `path`, opened once a process and never closed.
    static std::shared_ptr<const OnnxRuntime> at(const std::string& path) {
        static std::mutex lock;
        static std::map<std::string, std::shared_ptr<const OnnxRuntime>> opened;
        const std::lock_guard<std::mutex> held(lock);
        auto& runtime = opened[path];
        if (!runtime) runtime.reset(new OnnxRuntime(path));
        return runtime;
    }

    template <class... Arguments>
    void release(Function function, Arguments... arguments) const {
        reinterpret_cast<void (*)(Arguments...)>(const_cast<void*>(api_[function]))(arguments...);
    }

    // Empty for success, else ONNX Runtime's words.
    template <class... Arguments>
    std::string try_call(Function function, Arguments... arguments) const {
        void* status = reinterpret_cast<void* (*)(Arguments...)>(
            const_cast<void*>(api_[function]))(arguments...);
        if (!status) return {};
        const std::string words = first_line(reinterpret_cast<const char* (*)(void*)>(
            const_cast<void*>(api_[kGetErrorMessage]))(status));
        release(kReleaseStatus, status);
        return words.empty() ? "no reason given" : words;
    }

    template <class... Arguments>
    void call(Function function, Arguments... arguments) const {
        const std::string words = try_call(function, arguments...);
        if (!words.empty()) throw std::runtime_error("ONNX Runtime: " + words);
    }

    void* env = nullptr;
    std::string version;

  private:
    explicit OnnxRuntime(const std::string& path) {
        void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!handle)
            throw BadInput("ONNX Runtime cannot be opened (" + first_line(dlerror()) +
                           "), expected its shared library; run `make install`, then export again");
        const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
        const void* const* api = base ? base()->get_api(kApiVersion) : nullptr;
        if (!api)
            throw BadInput(path + " has no API of version 21, expected ONNX Runtime 1.21 or newer; "
                           "run `make install`, then export again");
        api_ = api;
        version = base()->get_version();
        call(kCreateEnv, kWarnings, "toxicity", &env);
    }

    const void* const* api_ = nullptr;
};

namespace {

// Frees what a call made, whatever happens.
class Held {
  public:
    Held(const OnnxRuntime& runtime, Function release) : runtime_(runtime), release_(release) {}
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    ~Held() {
        if (pointer) runtime_.release(release_, pointer);
    }
    void* pointer = nullptr;

  private:
    const OnnxRuntime& runtime_;
    Function release_;
};

struct Tensor {
    std::string name;
    int type = 0;
    std::size_t rank = 0;
    std::int64_t columns = 0;  // of one of rank 2; -1 where that is not fixed
};

Tensor describe(const OnnxRuntime& ort, void* session, std::size_t i, bool input) {
    Tensor tensor;
    void* allocator = nullptr;
    char* name = nullptr;
    ort.call(kGetAllocatorWithDefaultOptions, &allocator);
    ort.call(input ? kSessionGetInputName : kSessionGetOutputName, session, i, allocator, &name);
    tensor.name = name;
    ort.try_call(kAllocatorFree, allocator, static_cast<void*>(name));
    Held type(ort, kReleaseTypeInfo);
    ort.call(input ? kSessionGetInputTypeInfo : kSessionGetOutputTypeInfo, session, i, &type.pointer);
    void* shape = nullptr;  // borrowed
    ort.call(kCastTypeInfoToTensorInfo, type.pointer, &shape);
    if (shape) {
        ort.call(kGetTensorElementType, shape, &tensor.type);
        ort.call(kGetDimensionsCount, shape, &tensor.rank);
    }
    if (tensor.rank == 2) {
        std::int64_t sizes[2] = {0, 0};
        ort.call(kGetDimensions, shape, &sizes[0], std::size_t{2});
        tensor.columns = sizes[1];
    }
    return tensor;
}

void use_gpu(const OnnxRuntime& ort, void* options, int gpu) {
    Held cuda(ort, kReleaseCudaOptions);
    const std::string device = std::to_string(gpu);
    // TensorFloat-32 would round float32 matmuls to ten bits behind the gates' back.
    const char* const keys[] = {"device_id", "use_tf32"};
    const char* const values[] = {device.c_str(), "0"};
    std::string words = ort.try_call(kCreateCudaOptions, &cuda.pointer);
    if (words.empty())
        words = ort.try_call(kUpdateCudaOptions, cuda.pointer, &keys[0], &values[0], std::size_t{2});
    if (words.empty()) words = ort.try_call(kAppendCuda, options, cuda.pointer);
    if (!words.empty())
        throw BadInput("ONNX Runtime " + ort.version + " is without CUDAExecutionProvider (" + words +
                       "), expected it for a cuda artifact; install onnxruntime-gpu with its CUDA "
                       "libraries, or export with --device cpu");
}

}  // namespace

Session::Session(const std::string& library, std::string_view graph, int gpu)
    : runtime_(OnnxRuntime::at(library)) {
    const OnnxRuntime& ort = *runtime_;
    Held options(ort, kReleaseSessionOptions);
    ort.call(kCreateSessionOptions, &options.pointer);
    ort.call(kSetIntraOpNumThreads, options.pointer, 1);
    ort.call(kSetInterOpNumThreads, options.pointer, 1);
    if (gpu >= 0) use_gpu(ort, options.pointer, gpu);
    Held session(ort, kReleaseSession), memory(ort, kReleaseMemoryInfo);
    const void* bytes = graph.data();
    const std::string words = ort.try_call(kCreateSessionFromArray, ort.env, bytes, graph.size(),
                                           options.pointer, &session.pointer);
    if (!words.empty())
        throw BadInput("the graph cannot be loaded (" + words +
                       "), expected what `make export` wrote; export again");
    ort.call(kCreateCpuMemoryInfo, kArenaAllocator, kDefaultMemory, &memory.pointer);
    std::swap(session_, session.pointer);
    std::swap(memory_, memory.pointer);
    try {
        check_tensors();
    } catch (...) {
        close();
        throw;
    }
}

Session::Session(Session&& other) noexcept
    : runtime_(std::move(other.runtime_)),
      session_(std::exchange(other.session_, nullptr)),
      memory_(std::exchange(other.memory_, nullptr)),
      ragged_(other.ragged_),
      attributes_(other.attributes_) {}

Session::~Session() { close(); }

void Session::close() {
    if (session_) runtime_->release(kReleaseSession, session_);
    if (memory_) runtime_->release(kReleaseMemoryInfo, memory_);
    session_ = memory_ = nullptr;
}

void Session::check_tensors() {
    std::size_t count = 0;
    runtime_->call(kSessionGetInputCount, session_, &count);
    std::map<std::string, Tensor> inputs;
    for (std::size_t i = 0; i < count; i++) {
        Tensor tensor = describe(*runtime_, session_, i, true);
        inputs[tensor.name] = tensor;
    }
    const auto has = [&](const char* name, int type, std::size_t rank) {
        const auto found = inputs.find(name);
        return found != inputs.end() && found->second.type == type && found->second.rank == rank;
    };
    ragged_ = inputs.count(ACCUMULATED_COUNTS) > 0;
    const bool known = ragged_ ? has(INPUT_IDS, kInt64, 1) && has(ACCUMULATED_COUNTS, kInt32, 1)
                               : has(INPUT_IDS, kInt64, 2) && has(ATTENTION_MASK, kInt64, 2);
    const Tensor output = describe(*runtime_, session_, 0, false);
    if (count != 2 || !known || output.name != LOGIT || output.type != kFloat || output.rank != 1)
        throw BadInput("the graph has other tensors than input_ids with attention_mask or "
                       "accumulated_counts, and logit; export again");
    check_outputs();
}

// Whatever is behind the logit must be one tensor with a column for each attribute.
void Session::check_outputs() {
    std::size_t count = 0;
    runtime_->call(kSessionGetOutputCount, session_, &count);
    if (count == 1) return;
    const Tensor output = describe(*runtime_, session_, 1, false);
    if (count != 2 || output.name != ATTRIBUTES || output.type != kFloat || output.rank != 2 ||
        output.columns < 1 || output.columns > MAX_ATTRIBUTES)
        throw BadInput("the graph has other outputs than logit and the columns of attributes, 1 to " +
                       std::to_string(MAX_ATTRIBUTES) + "; export again");
    attributes_ = static_cast<std::size_t>(output.columns);
}

void Session::run(const std::vector<Row>& rows, float* logits) {
    std::size_t tokens = 0, longest = 0;
    for (const Row& row : rows) {
        tokens += static_cast<std::size_t>(row.length);
        longest = std::max(longest, static_cast<std::size_t>(row.length));
    }
    const std::size_t cells = ragged_ ? tokens : rows.size() * longest;
    ids_.assign(cells, PAD_ID);
    counts_.clear();
    if (!ragged_) mask_.assign(cells, 0);
    std::size_t start = 0, total = 0;
    for (const Row& row : rows) {
        const auto length = static_cast<std::size_t>(row.length);
        ids_[start] = row.ids[0];
        std::copy_n(row.ids + 1 + row.skip, length - 1, ids_.begin() + static_cast<std::ptrdiff_t>(start) + 1);
        if (!ragged_) std::fill_n(mask_.begin() + static_cast<std::ptrdiff_t>(start), length, 1);
        start += ragged_ ? length : longest;
        counts_.push_back(static_cast<std::int32_t>(total += length));
    }
    const auto B = static_cast<std::int64_t>(rows.size()), L = static_cast<std::int64_t>(longest);
    const void* const inputs[2] = {ids_.data(), ragged_ ? static_cast<void*>(counts_.data()) : mask_.data()};
    const std::size_t bytes[2] = {8 * cells, ragged_ ? 4 * rows.size() : 8 * cells};
    const std::int64_t shapes[2][2] = {{ragged_ ? static_cast<std::int64_t>(tokens) : B, L}, {B, L}};
    run_tensors(inputs, bytes, shapes, rows.size(), logits);
}

void Session::run_tensors(const void* const inputs[2], const std::size_t bytes[2],
                          const std::int64_t shape[2][2], std::size_t rows, float* logits) {
    const OnnxRuntime& ort = *runtime_;
    const std::size_t rank = ragged_ ? 1 : 2;
    Held first(ort, kReleaseValue), second(ort, kReleaseValue), logit(ort, kReleaseValue),
        attributes(ort, kReleaseValue);
    ort.call(kCreateTensorWithData, memory_, const_cast<void*>(inputs[0]), bytes[0], &shape[0][0], rank,
             kInt64, &first.pointer);
    ort.call(kCreateTensorWithData, memory_, const_cast<void*>(inputs[1]), bytes[1], &shape[1][0], rank,
             ragged_ ? kInt32 : kInt64, &second.pointer);
    const char* const names[] = {INPUT_IDS, ragged_ ? ACCUMULATED_COUNTS : ATTENTION_MASK};
    const char* const wanted[] = {LOGIT, ATTRIBUTES};
    void* const values[] = {first.pointer, second.pointer};
    void* found[2] = {nullptr, nullptr};
    ort.call(kRun, session_, static_cast<void*>(nullptr), &names[0], &values[0], std::size_t{2},
             &wanted[0], attributes_ ? std::size_t{2} : std::size_t{1}, &found[0]);
    logit.pointer = found[0];
    attributes.pointer = found[1];
    copy_logits(logit.pointer, rows, 1, logits);
    if (attributes_) copy_logits(attributes.pointer, rows, attributes_, logits + 1);
}

// A tensor of `columns` logits a row, to every `width`-th place from `logits` on.
void Session::copy_logits(void* tensor, std::size_t rows, std::size_t columns, float* logits) const {
    const OnnxRuntime& ort = *runtime_;
    Held shape_of(ort, kReleaseTensorTypeAndShapeInfo);
    std::size_t count = 0;
    ort.call(kGetTensorTypeAndShape, tensor, &shape_of.pointer);
    ort.call(kGetTensorShapeElementCount, shape_of.pointer, &count);
    if (count != rows * columns)
        throw std::runtime_error("the graph gave " + std::to_string(count) + " logits for " +
                                 std::to_string(rows) + " comments, expected " +
                                 std::to_string(columns) + " each");
    void* data = nullptr;
    ort.call(kGetTensorMutableData, tensor, &data);
    const auto* from = static_cast<const float*>(data);
    for (std::size_t row = 0; row < rows; row++)
        std::copy_n(from + row * columns, columns, logits + row * width());
}

}  // namespace toxicity
