#include "instance.h"

#include <time.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include "contract.h"
#include "errors.h"
#include "request.h"

namespace toxicity {
namespace {

constexpr char kOverloaded[] =
    "overloaded: more comments wait than can be scored in time; try again";
// Requests that waited for a call longer than this are asked whether their client is still there.
constexpr double kPatience_s = 0.05;

std::uint64_t now_ns() {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<std::uint64_t>(now.tv_sec) * 1000000000u + static_cast<std::uint64_t>(now.tv_nsec);
}

// Microseconds of Unix time.
std::int64_t unix_us() {
    timespec now{};
    clock_gettime(CLOCK_REALTIME, &now);
    return static_cast<std::int64_t>(now.tv_sec) * 1000000 + now.tv_nsec / 1000;
}

constexpr std::int64_t kLongestWait_us = 3600ll * 1000000;  // a longer one is a clock that was set

Metric metric_of(ErrorCode code) {
    if (code == ErrorCode::unavailable) return Metric::overloaded;
    if (code == ErrorCode::invalid_arg) return Metric::invalid;
    return code == ErrorCode::cancelled ? Metric::cancelled : Metric::failed;
}

int gpu_of(TRITONBACKEND_ModelInstance* handle, const Version& version) {
    if (version.device() == "cpu") return -1;
    int kind = 0;
    std::int32_t device = 0;
    triton.check(triton.BACKEND_ModelInstanceKind(handle, &kind));
    triton.check(triton.BACKEND_ModelInstanceDeviceId(handle, &device));
    if (kind != static_cast<int>(InstanceKind::gpu))
        throw BadInput("the instance group is not of KIND_GPU, expected it for a cuda artifact; run "
                       "`make export` to publish a new version");
    return device;
}

}  // namespace

Instance::Instance(TRITONBACKEND_ModelInstance* handle, const Version& version)
    : handle_(handle), version_(version), scorer_(version.scorer(gpu_of(handle, version))) {
    const std::string& number = version.number();
    for (int shift = 0; shift < 32; shift += 8)
        version_item_ += static_cast<char>(number.size() >> shift & 0xFF);
    version_item_ += number;
    version_.count_instance(1);
}

Instance::~Instance() { version_.count_instance(-1); }

void Instance::execute(TRITONBACKEND_Request** handles, std::uint32_t count) noexcept {
    const std::uint64_t began = now_ns();
    std::vector<Request> requests;
    try {
        requests.resize(count);
        for (std::uint32_t i = 0; i < count; i++) requests[i].handle = handles[i];
        answer(requests, began);
    } catch (const std::exception& error) {
        if (requests.empty()) {  // not even that much memory
            Request request;
            for (std::uint32_t i = 0; i < count; i++) {
                request.handle = handles[i];
                refuse(request, ErrorCode::internal, error.what());
            }
        }
        for (Request& request : requests) refuse(request, ErrorCode::internal, error.what());
    }
    const std::uint64_t ended = now_ns();
    admission_.ended(1e-9 * static_cast<double>(ended));
    last_call_s_ = 1e-9 * static_cast<double>(ended - began);
}

// Since haproxy took the request, which says so in a header; Triton says nothing of its queue.
double Instance::waited_s(const Request& request, std::int64_t now_us) const {
    std::uint32_t count = 0;
    if (!triton.ok(triton.BACKEND_RequestParameterCount(request.handle, &count))) return -1;
    const char* arrived = nullptr;
    for (std::uint32_t i = 0; i < count; i++) {
        const char* name = nullptr;
        int type = 0;
        const void* value = nullptr;
        if (!triton.ok(triton.BACKEND_RequestParameter(request.handle, i, &name, &type, &value))) return -1;
        // The last one: Triton puts headers behind the parameters that a client names.
        if (type == static_cast<int>(kParameterString) && !std::strcmp(name, ARRIVAL_HEADER))
            arrived = static_cast<const char*>(value);
    }
    if (!arrived) return -1;
    const std::int64_t waited_us = now_us - std::strtoll(arrived, nullptr, 10);
    if (waited_us > kLongestWait_us || waited_us < -kLongestWait_us) return -1;
    return 1e-6 * static_cast<double>(std::max<std::int64_t>(0, waited_us));
}

// Reads the comments of a request, and whether it is a check. Throws BadInput for one that cannot be scored.
void Instance::take(Request& request) {
    TRITONBACKEND_Input* input = nullptr;
    const char* name = nullptr;
    const std::int64_t* shape = nullptr;
    std::uint32_t type = 0, dims = 0, buffers = 0;
    std::uint64_t bytes = 0;
    triton.check(triton.BACKEND_RequestInput(request.handle, TEXT, &input));
    triton.check(triton.BACKEND_InputProperties(input, &name, &type, &shape, &dims, &bytes, &buffers));
    if (type != kTypeBytes || dims != 2 || shape[1] != 1)
        throw BadInput("the input 'text' is not BYTES [B, 1], expected one comment a row; send it so");
    std::string_view whole;
    for (std::uint32_t i = 0; i < buffers; i++) {
        const void* buffer = nullptr;
        std::uint64_t size = 0;
        int memory = static_cast<int>(MemoryType::cpu);
        std::int64_t device = 0;
        triton.check(triton.BACKEND_InputBuffer(input, i, &buffer, &size, &memory, &device));
        if (memory == static_cast<int>(MemoryType::gpu))
            throw BadInput("the input 'text' lies in a GPU's memory, expected the CPU's; send it so");
        const std::string_view part(static_cast<const char*>(buffer), buffer ? size : 0);
        if (buffers == 1)
            whole = part;
        else
            request.joined += part;
    }
    request.texts = decode_texts(buffers == 1 ? whole : request.joined, shape[0]);
    request.check = is_check(request.texts);
    std::size_t bytes_of_text = 0;
    for (const std::string_view text : request.texts) {
        request.rows += scorer_->windows(text);
        bytes_of_text += text.size();
    }
    if (request.rows > MAX_REQUEST_WINDOWS)
        throw BadInput("the request's " + std::to_string(request.texts.size()) + " comments are " +
                       std::to_string(request.rows) + " windows of text, expected at most " +
                       std::to_string(MAX_REQUEST_WINDOWS) + "; send fewer comments in a request");
    request.rows += static_cast<int>(bytes_of_text / BYTES_A_ROW);  // reading takes time too
}

void Instance::answer(std::vector<Request>& requests, std::uint64_t began_ns) {
    std::vector<Request*> waiting;
    std::vector<int> rows;
    std::int64_t comments = 0, largest = 0;
    const Metrics* const metrics = version_.metrics();
    const std::int64_t now_us = metrics && metrics->has_histograms() ? unix_us() : 0;
    for (Request& request : requests) {
        if (now_us) request.waited_s = waited_s(request, now_us);
        bool cancelled = false;
        if (last_call_s_ > kPatience_s &&
            triton.ok(triton.BACKEND_RequestIsCancelled(request.handle, &cancelled)) && cancelled) {
            refuse(request, ErrorCode::cancelled, "cancelled by the client");
            continue;
        }
        try {
            take(request);
        } catch (const BadInput& error) {
            refuse(request, ErrorCode::invalid_arg, error.what());
            continue;
        }
        waiting.push_back(&request);
        rows.push_back(request.rows);
        const auto asked = static_cast<std::int64_t>(request.texts.size());
        comments += asked;
        largest = std::max(largest, asked);
    }
    const std::size_t admitted =
        admission_.admit(rows, 1e-9 * static_cast<double>(now_ns()), comments, largest);
    for (std::size_t i = admitted; i < waiting.size(); i++)
        refuse(*waiting[i], ErrorCode::unavailable, kOverloaded);
    waiting.resize(admitted);
    const auto asks_only = [](const Request* request) { return request->check; };
    std::vector<Request*> checks;  // nearly always none
    std::copy_if(waiting.begin(), waiting.end(), std::back_inserter(checks), asks_only);
    waiting.erase(std::remove_if(waiting.begin(), waiting.end(), asks_only), waiting.end());
    if (!waiting.empty()) score(waiting, began_ns);
    if (!checks.empty()) score(checks, began_ns);  // a call of their own: what is counted is a call's
}

void Instance::score(std::vector<Request*>& admitted, std::uint64_t began_ns) {
    std::vector<std::string_view> texts;
    int rows = 0;
    for (const Request* request : admitted) {
        texts.insert(texts.end(), request->texts.begin(), request->texts.end());
        rows += request->rows;
    }
    const std::size_t width = scorer_->width();  // toxicity's logit is the first of a comment's
    std::vector<float> logits(texts.size() * width);
    std::vector<std::int32_t> lengths(texts.size());
    Times times{began_ns, now_ns(), 0};
    const Counts counts = scorer_->score(texts, logits.data(), lengths.data());
    times.end_ns = now_ns();
    admission_.observe(rows, times.compute_s());
    const float* next = logits.data();
    for (Request* request : admitted) {
        const float* own = next;
        next += request->texts.size() * width;
        TRITONBACKEND_Request* const handle = request->handle;
        respond(*request, own);
        request->answered_ns = now_ns();
        triton.ok(triton.BACKEND_ModelInstanceReportStatistics(
            handle_, handle, true, began_ns, times.start_ns, times.end_ns, request->answered_ns));
        triton.ok(triton.BACKEND_RequestRelease(handle, kReleaseAll));
    }
    triton.ok(triton.BACKEND_ModelInstanceReportBatchStatistics(handle_, texts.size(), began_ns, times.start_ns,
                                                                times.end_ns, now_ns()));
    if (!admitted.front()->check) count(admitted, logits, lengths, counts, times);
}

// Once every request is answered and released: nobody waits for this.
void Instance::count(const std::vector<Request*>& scored, const std::vector<float>& logits,
                     const std::vector<std::int32_t>& lengths, const Counts& counts,
                     const Times& times) const {
    const Metrics* const metrics = version_.metrics();
    if (!metrics) return;
    const auto add = [&](Metric metric, auto amount) { metrics->add(metric, static_cast<double>(amount)); };
    const auto comments = static_cast<std::int64_t>(lengths.size());
    std::vector<double> scores(lengths.size());
    for (std::size_t i = 0; i < scores.size(); i++)  // of toxicity, the first of a comment's logits
        scores[i] = static_cast<double>(probability(logits[i * scorer_->width()]));
    const auto flagged = std::count_if(scores.begin(), scores.end(),
                                       [&](double score) { return score >= version_.threshold(); });
    add(Metric::batches, 1);
    add(Metric::requests, scored.size());
    add(Metric::comments, comments);
    add(Metric::cut, counts.cut);
    add(Metric::windowed, counts.windowed);
    add(Metric::tokens, counts.tokens);
    add(Metric::words, counts.words.all);
    add(Metric::unknown_words, counts.words.unknown);
    add(Metric::respelled_words, counts.words.respelled);
    add(Metric::flagged, flagged);
    add(Metric::passed, comments - flagged);
    add(Metric::compute_us, 1e6 * times.compute_s());
    add(Metric::tokenizer_cpu_us, 1e6 * counts.tokenizer_cpu_s);
    add(Metric::encoder_cpu_us, 1e6 * counts.encoder_cpu_s);
    add(Metric::hits, counts.hits);
    if (const LogitCache* cache = version_.cache()) {
        add(Metric::misses, comments - counts.hits);
        metrics->set(Metric::cached_bytes, static_cast<double>(cache->used_bytes()));
    }
    if (metrics->has_histograms()) observe(scored, scores, lengths, times);
    const std::uint64_t now = now_ns();
    metrics->set(Metric::capacity,
                 version_.capacity_after(comments, 1e-9 * static_cast<double>(now - times.began_ns),
                                         1e-9 * static_cast<double>(now)));
}

void Instance::observe(const std::vector<Request*>& scored, const std::vector<double>& scores,
                       const std::vector<std::int32_t>& lengths, const Times& times) const {
    const Metrics& metrics = *version_.metrics();
    const auto seconds = [&](std::uint64_t until_ns) {
        return 1e-9 * static_cast<double>(until_ns - times.began_ns);
    };
    for (const Request* request : scored) {
        metrics.observe(Metric::request_s,
                        std::max(0.0, request->waited_s) + seconds(request->answered_ns));
        if (request->waited_s >= 0)
            metrics.observe(Metric::queue_s, request->waited_s + seconds(times.start_ns));
        metrics.observe(Metric::compute_s, times.compute_s());
    }
    metrics.observe(Metric::batch_comments, static_cast<double>(scores.size()));
    for (std::size_t i = 0; i < scores.size(); i++) {
        metrics.observe(Metric::score, scores[i]);
        metrics.observe(Metric::comment_tokens, static_cast<double>(lengths[i]));
    }
}

// Sends the outputs that were asked for. The request is not released: its times are still due.
void Instance::respond(Request& request, const float* logits) {
    TRITONBACKEND_Response* response = nullptr;
    TRITONSERVER_Error* failed = nullptr;
    if (triton.ok(triton.BACKEND_ResponseNew(&response, request.handle))) {
        try {
            std::uint32_t outputs = 0;
            triton.check(triton.BACKEND_RequestOutputCount(request.handle, &outputs));
            for (std::uint32_t i = 0; i < outputs; i++) {
                const char* name = nullptr;
                triton.check(triton.BACKEND_RequestOutputName(request.handle, i, &name));
                write(response, name, logits, request.texts.size());
            }
        } catch (const std::exception& error) {
            failed = triton.ErrorNew(static_cast<int>(ErrorCode::internal), error.what());
            if (const Metrics* metrics = version_.metrics()) metrics->add(Metric::failed, 1);
        }
        triton.ok(triton.BACKEND_ResponseSend(response, kResponseFinal, failed));
        if (failed) triton.ErrorDelete(failed);
    }
    request.handle = nullptr;
}

void* Instance::output(TRITONBACKEND_Response* response, const char* name, std::uint32_t type,
                       std::size_t count, std::size_t columns, std::size_t bytes) const {
    TRITONBACKEND_Output* output = nullptr;
    void* buffer = nullptr;
    const std::int64_t shape[] = {static_cast<std::int64_t>(count), static_cast<std::int64_t>(columns)};
    int memory = static_cast<int>(MemoryType::cpu);
    std::int64_t device = 0;
    triton.check(triton.BACKEND_ResponseOutput(response, &output, name, type, shape, 2));
    triton.check(triton.BACKEND_OutputBuffer(output, &buffer, bytes, &memory, &device));
    if (!buffer || memory == static_cast<int>(MemoryType::gpu))
        throw std::runtime_error("Triton gave no memory of the CPU for an output");
    return buffer;
}

void Instance::write(TRITONBACKEND_Response* response, const char* name, const float* logits,
                     std::size_t count) const {
    const std::size_t width = scorer_->width(), bytes = count * sizeof(float);
    if (!std::strcmp(name, PROBABILITY)) {
        auto* out = static_cast<float*>(output(response, name, kTypeFloat, count, 1, bytes));
        for (std::size_t i = 0; i < count; i++) out[i] = probability(logits[i * width]);
    } else if (!std::strcmp(name, LOGIT)) {
        auto* out = static_cast<float*>(output(response, name, kTypeFloat, count, 1, bytes));
        for (std::size_t i = 0; i < count; i++) out[i] = logits[i * width];
    } else if (!std::strcmp(name, ATTRIBUTES)) {
        write_attributes(response, logits, count);
    } else if (!std::strcmp(name, MODEL_VERSION)) {
        const std::size_t size = version_item_.size();
        auto* out = static_cast<char*>(output(response, name, kTypeBytes, count, 1, count * size));
        for (std::size_t i = 0; i < count; i++) std::memcpy(out + i * size, version_item_.data(), size);
    }
}

// Probabilities, and beside them the names of their columns. Of a graph without any it is no output.
void Instance::write_attributes(TRITONBACKEND_Response* response, const float* logits,
                                std::size_t count) const {
    const std::size_t width = scorer_->width(), columns = width - 1;
    if (!columns) return;
    auto* out = static_cast<float*>(
        output(response, ATTRIBUTES, kTypeFloat, count, columns, count * columns * sizeof(float)));
    for (std::size_t i = 0; i < count; i++, logits += width)
        for (std::size_t column = 0; column < columns; column++)
            *out++ = probability(logits[1 + column]);
    triton.check(triton.BACKEND_ResponseSetStringParameter(response, ATTRIBUTES,
                                                           version_.attributes().c_str()));
}

void Instance::refuse(Request& request, ErrorCode code, const std::string& words) noexcept {
    if (!request.handle) return;
    const std::uint64_t now = now_ns();
    TRITONBACKEND_Response* response = nullptr;
    if (triton.ok(triton.BACKEND_ResponseNew(&response, request.handle))) {
        TRITONSERVER_Error* error = triton.error(code, words);
        triton.ok(triton.BACKEND_ResponseSend(response, kResponseFinal, error));
        triton.ErrorDelete(error);
    }
    triton.ok(triton.BACKEND_ModelInstanceReportStatistics(handle_, request.handle, false, now, now, now, now));
    triton.ok(triton.BACKEND_RequestRelease(request.handle, kReleaseAll));
    request.handle = nullptr;
    const Metrics* const metrics = version_.metrics();
    if (metrics && !request.check) metrics->add(metric_of(code), 1);
}

}  // namespace toxicity
