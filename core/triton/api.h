// The part of Triton's C API that the backend needs, declared by hand: its functions are found at
// run time in the server that loads it, so nothing of Triton is needed to build it.
//
// Names and meanings are those of tritonserver.h and tritonbackend.h (API 1.x).
#pragma once

#include <cstdint>
#include <string>

struct TRITONSERVER_Error;
struct TRITONSERVER_Message;
struct TRITONSERVER_MetricFamily;
struct TRITONSERVER_Metric;
struct TRITONSERVER_MetricArgs;
struct TRITONSERVER_Parameter;
struct TRITONBACKEND_Input;
struct TRITONBACKEND_Output;
struct TRITONBACKEND_Request;
struct TRITONBACKEND_Response;
struct TRITONBACKEND_Backend;
struct TRITONBACKEND_Model;
struct TRITONBACKEND_ModelInstance;

namespace toxicity {

enum class ErrorCode : int { unknown, internal, not_found, invalid_arg, unavailable, unsupported, already_exists, cancelled };
enum class MemoryType : int { cpu, cpu_pinned, gpu };
enum class InstanceKind : int { automatic, cpu, gpu, model };
enum class MetricKind : int { counter, gauge, histogram };
constexpr std::uint32_t kTypeFloat = 11, kTypeBytes = 13;  // TRITONSERVER_DataType
constexpr std::uint32_t kResponseFinal = 1, kReleaseAll = 1, kParameterString = 0;

// X(name, arguments): each gives a TRITONSERVER_Error*, nullptr for success.
#define TOXICITY_BACKEND_CALLS(X)                                                                    \
    X(BACKEND_ApiVersion, std::uint32_t*, std::uint32_t*)                                            \
    X(BACKEND_ModelRepository, TRITONBACKEND_Model*, int*, const char**)                             \
    X(BACKEND_ModelVersion, TRITONBACKEND_Model*, std::uint64_t*)                                    \
    X(BACKEND_ModelConfig, TRITONBACKEND_Model*, std::uint32_t, TRITONSERVER_Message**)              \
    X(BACKEND_ModelState, TRITONBACKEND_Model*, void**)                                              \
    X(BACKEND_ModelSetState, TRITONBACKEND_Model*, void*)                                            \
    X(BACKEND_ModelInstanceModel, TRITONBACKEND_ModelInstance*, TRITONBACKEND_Model**)               \
    X(BACKEND_ModelInstanceKind, TRITONBACKEND_ModelInstance*, int*)                                 \
    X(BACKEND_ModelInstanceDeviceId, TRITONBACKEND_ModelInstance*, std::int32_t*)                    \
    X(BACKEND_ModelInstanceState, TRITONBACKEND_ModelInstance*, void**)                              \
    X(BACKEND_ModelInstanceSetState, TRITONBACKEND_ModelInstance*, void*)                            \
    X(BACKEND_ModelInstanceReportStatistics, TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request*,   \
      bool, std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t)                              \
    X(BACKEND_ModelInstanceReportBatchStatistics, TRITONBACKEND_ModelInstance*, std::uint64_t,       \
      std::uint64_t, std::uint64_t, std::uint64_t, std::uint64_t)                                    \
    X(BACKEND_RequestInput, TRITONBACKEND_Request*, const char*, TRITONBACKEND_Input**)              \
    X(BACKEND_RequestOutputCount, TRITONBACKEND_Request*, std::uint32_t*)                            \
    X(BACKEND_RequestOutputName, TRITONBACKEND_Request*, std::uint32_t, const char**)                \
    X(BACKEND_RequestParameterCount, TRITONBACKEND_Request*, std::uint32_t*)                          \
    X(BACKEND_RequestParameter, TRITONBACKEND_Request*, std::uint32_t, const char**, int*,           \
      const void**)                                                                                  \
    X(BACKEND_RequestIsCancelled, TRITONBACKEND_Request*, bool*)                                     \
    X(BACKEND_RequestRelease, TRITONBACKEND_Request*, std::uint32_t)                                 \
    X(BACKEND_InputProperties, TRITONBACKEND_Input*, const char**, std::uint32_t*,                   \
      const std::int64_t**, std::uint32_t*, std::uint64_t*, std::uint32_t*)                          \
    X(BACKEND_InputBuffer, TRITONBACKEND_Input*, std::uint32_t, const void**, std::uint64_t*, int*,  \
      std::int64_t*)                                                                                 \
    X(BACKEND_ResponseNew, TRITONBACKEND_Response**, TRITONBACKEND_Request*)                         \
    X(BACKEND_ResponseSetStringParameter, TRITONBACKEND_Response*, const char*, const char*)         \
    X(BACKEND_ResponseOutput, TRITONBACKEND_Response*, TRITONBACKEND_Output**, const char*,          \
      std::uint32_t, const std::int64_t*, std::uint32_t)                                             \
    X(BACKEND_OutputBuffer, TRITONBACKEND_Output*, void**, std::uint64_t, int*, std::int64_t*)       \
    X(BACKEND_ResponseSend, TRITONBACKEND_Response*, std::uint32_t, TRITONSERVER_Error*)             \
    X(SERVER_MessageSerializeToJson, TRITONSERVER_Message*, const char**, std::size_t*)              \
    X(SERVER_MessageDelete, TRITONSERVER_Message*)                                                   \
    X(SERVER_MetricFamilyNew, TRITONSERVER_MetricFamily**, int, const char*, const char*)            \
    X(SERVER_MetricFamilyDelete, TRITONSERVER_MetricFamily*)                                         \
    X(SERVER_MetricNew, TRITONSERVER_Metric**, TRITONSERVER_MetricFamily*,                           \
      const TRITONSERVER_Parameter**, std::uint64_t)                                                 \
    X(SERVER_MetricDelete, TRITONSERVER_Metric*)                                                     \
    X(SERVER_MetricIncrement, TRITONSERVER_Metric*, double)                                          \
    X(SERVER_MetricSet, TRITONSERVER_Metric*, double)

// The same, of 24.10 and newer releases: nullptr in a server without them, which has no histograms.
#define TOXICITY_HISTOGRAM_CALLS(X)                                                                  \
    X(SERVER_MetricArgsNew, TRITONSERVER_MetricArgs**)                                               \
    X(SERVER_MetricArgsSetHistogram, TRITONSERVER_MetricArgs*, const double*, std::uint64_t)         \
    X(SERVER_MetricArgsDelete, TRITONSERVER_MetricArgs*)                                             \
    X(SERVER_MetricNewWithArgs, TRITONSERVER_Metric**, TRITONSERVER_MetricFamily*,                   \
      const TRITONSERVER_Parameter**, std::uint64_t, const TRITONSERVER_MetricArgs*)                 \
    X(SERVER_MetricObserve, TRITONSERVER_Metric*, double)

// The functions, found once. A call gives what Triton gave.
struct TritonApi {
#define TOXICITY_DECLARE(name, ...) TRITONSERVER_Error* (*name)(__VA_ARGS__) = nullptr;
    TOXICITY_BACKEND_CALLS(TOXICITY_DECLARE)
    TOXICITY_HISTOGRAM_CALLS(TOXICITY_DECLARE)
#undef TOXICITY_DECLARE
    TRITONSERVER_Error* (*ErrorNew)(int, const char*) = nullptr;
    void (*ErrorDelete)(TRITONSERVER_Error*) = nullptr;
    const char* (*ErrorMessage)(TRITONSERVER_Error*) = nullptr;
    TRITONSERVER_Parameter* (*ParameterNew)(const char*, int, const void*) = nullptr;
    void (*ParameterDelete)(TRITONSERVER_Parameter*) = nullptr;

    // The name of a function that this server lacks, or nullptr.
    const char* load();
    bool has_histograms() const { return SERVER_MetricObserve; }

    TRITONSERVER_Error* error(ErrorCode code, const std::string& words) const {
        return ErrorNew(static_cast<int>(code), words.c_str());
    }
    // Throws std::runtime_error with Triton's words, which it frees.
    void check(TRITONSERVER_Error* error) const;
    // Success or not, where nothing else can be done about it.
    bool ok(TRITONSERVER_Error* error) const;
};

extern TritonApi triton;

}  // namespace toxicity
