// A Triton backend that does nothing: every comment gets the logit 0. What its requests cost is what
// the server, its front end and the generator cost without a model (bench/serving/road.py).
#include <cstdint>
#include <cstring>
#include <string>

#include "api.h"
#include "contract.h"

using namespace toxicity;

#define TRITON_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

void write(TRITONBACKEND_Response* response, const char* name, std::int64_t count) {
    static const char kVersion[] = "\1\0\0\0" "1";
    const bool number = std::strcmp(name, MODEL_VERSION) != 0;
    const std::size_t size = number ? sizeof(float) : sizeof kVersion - 1;
    const float value = std::strcmp(name, PROBABILITY) ? 0.0f : 0.5f;
    const std::int64_t shape[] = {count, 1};
    TRITONBACKEND_Output* output = nullptr;
    void* buffer = nullptr;
    int memory = 0;
    std::int64_t device = 0;
    triton.check(triton.BACKEND_ResponseOutput(response, &output, name, number ? kTypeFloat : kTypeBytes,
                                               shape, 2));
    triton.check(triton.BACKEND_OutputBuffer(output, &buffer, size * static_cast<std::size_t>(count),
                                             &memory, &device));
    for (std::int64_t i = 0; i < count; i++)
        std::memcpy(static_cast<char*>(buffer) + static_cast<std::size_t>(i) * size,
                    number ? static_cast<const void*>(&value) : kVersion, size);
}

void answer(TRITONBACKEND_Request* request) {
    TRITONBACKEND_Input* input = nullptr;
    const std::int64_t* shape = nullptr;
    std::uint32_t type = 0, dims = 0, buffers = 0, outputs = 0;
    std::uint64_t bytes = 0;
    const char* name = nullptr;
    TRITONBACKEND_Response* response = nullptr;
    triton.check(triton.BACKEND_RequestInput(request, TEXT, &input));
    triton.check(triton.BACKEND_InputProperties(input, &name, &type, &shape, &dims, &bytes, &buffers));
    triton.check(triton.BACKEND_ResponseNew(&response, request));
    triton.check(triton.BACKEND_RequestOutputCount(request, &outputs));
    for (std::uint32_t i = 0; i < outputs; i++) {
        triton.check(triton.BACKEND_RequestOutputName(request, i, &name));
        write(response, name, shape[0]);
    }
    triton.check(triton.BACKEND_ResponseSend(response, kResponseFinal, nullptr));
}

}  // namespace

TRITON_EXPORT TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
    const char* missing = triton.load();
    return missing ? triton.error(ErrorCode::unsupported, std::string("no ") + missing) : nullptr;
}

TRITON_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, const std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; i++) {
        try {
            answer(requests[i]);
        } catch (const std::exception&) {
        }
        triton.ok(triton.BACKEND_ModelInstanceReportStatistics(instance, requests[i], true, 0, 0, 0, 0));
        triton.ok(triton.BACKEND_RequestRelease(requests[i], kReleaseAll));
    }
    triton.ok(triton.BACKEND_ModelInstanceReportBatchStatistics(instance, count, 0, 0, 0, 0));
    return nullptr;
}
