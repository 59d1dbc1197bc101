#include "api.h"

#include <dlfcn.h>

#include <stdexcept>

namespace toxicity {

TritonApi triton;

namespace {

template <class Function>
bool find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
    return function != nullptr;
}

}  // namespace

const char* TritonApi::load() {
#define TOXICITY_FIND(name, ...) \
    if (!find(name, "TRITON" #name)) return "TRITON" #name;
    TOXICITY_BACKEND_CALLS(TOXICITY_FIND)
#undef TOXICITY_FIND
    bool histograms = true;
#define TOXICITY_FIND(name, ...) histograms = find(name, "TRITON" #name) && histograms;
    TOXICITY_HISTOGRAM_CALLS(TOXICITY_FIND)
#undef TOXICITY_FIND
    if (!histograms) SERVER_MetricObserve = nullptr;
    if (!find(ErrorNew, "TRITONSERVER_ErrorNew")) return "TRITONSERVER_ErrorNew";
    if (!find(ErrorDelete, "TRITONSERVER_ErrorDelete")) return "TRITONSERVER_ErrorDelete";
    if (!find(ErrorMessage, "TRITONSERVER_ErrorMessage")) return "TRITONSERVER_ErrorMessage";
    if (!find(ParameterNew, "TRITONSERVER_ParameterNew")) return "TRITONSERVER_ParameterNew";
    if (!find(ParameterDelete, "TRITONSERVER_ParameterDelete")) return "TRITONSERVER_ParameterDelete";
    return nullptr;
}

void TritonApi::check(TRITONSERVER_Error* error) const {
    if (!error) return;
    const std::string words = ErrorMessage(error);
    ErrorDelete(error);
    throw std::runtime_error("Triton: " + words);
}

bool TritonApi::ok(TRITONSERVER_Error* error) const {
    if (!error) return true;
    ErrorDelete(error);
    return false;
}

}  // namespace toxicity
