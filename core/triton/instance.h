// One instance of the served model: answers the requests that Triton hands over together.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "admission.h"
#include "api.h"
#include "scorer.h"
#include "version.h"

namespace toxicity {

class Instance {
  public:
    // Opens and warms up a session on the instance's device. Throws BadInput when it cannot.
    Instance(TRITONBACKEND_ModelInstance* handle, const Version& version);
    ~Instance();
    Instance(const Instance&) = delete;
    Instance& operator=(const Instance&) = delete;

    // A response to each request: a bad one and one too many are refused on their own. Never throws,
    // and every request is released.
    void execute(TRITONBACKEND_Request** requests, std::uint32_t count) noexcept;

  private:
    struct Request {
        TRITONBACKEND_Request* handle = nullptr;  // nullptr once it was answered
        std::vector<std::string_view> texts;
        std::string joined;  // where its bytes came in several buffers
        int rows = 0;        // of the encoder's batches, or as much work
        bool check = false;  // asks whether this server scores: no traffic, which is not counted
        double waited_s = -1;  // from its arrival to `began`; negative where nobody said when it came
        std::uint64_t answered_ns = 0;
    };
    // A call's times by CLOCK_MONOTONIC: handed over, scored from, scored.
    struct Times {
        std::uint64_t began_ns, start_ns, end_ns;
        double compute_s() const { return 1e-9 * static_cast<double>(end_ns - start_ns); }
    };

    void take(Request& request);
    double waited_s(const Request& request, std::int64_t now_us) const;
    void answer(std::vector<Request>& requests, std::uint64_t began_ns);
    void score(std::vector<Request*>& admitted, std::uint64_t began_ns);
    void respond(Request& request, const float* logits);
    void refuse(Request& request, ErrorCode code, const std::string& words) noexcept;
    void write(TRITONBACKEND_Response* response, const char* name, const float* logits,
               std::size_t count) const;
    void write_attributes(TRITONBACKEND_Response* response, const float* logits, std::size_t count) const;
    void* output(TRITONBACKEND_Response* response, const char* name, std::uint32_t type,
                 std::size_t count, std::size_t columns, std::size_t bytes) const;
    void count(const std::vector<Request*>& scored, const std::vector<float>& logits,
               const std::vector<std::int32_t>& lengths, const Counts& counts, const Times& times) const;
    void observe(const std::vector<Request*>& scored, const std::vector<double>& scores,
                 const std::vector<std::int32_t>& lengths, const Times& times) const;

    TRITONBACKEND_ModelInstance* handle_;
    const Version& version_;
    std::unique_ptr<Scorer> scorer_;
    Admission admission_;
    std::string version_item_;  // serialized
    double last_call_s_ = 0;
};

}  // namespace toxicity
