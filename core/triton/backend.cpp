// The entry points that Triton calls. Nothing is thrown out of them: a failed load is an error with
// its reason, a failed request is answered.
#include <malloc.h>

#include <memory>
#include <new>
#include <string>

#include "api.h"
#include "errors.h"
#include "instance.h"
#include "version.h"

using namespace toxicity;

#define TRITON_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr std::uint32_t kApiMajor = 1, kApiMinor = 16;  // the oldest with all that api.h names

template <class Body>
TRITONSERVER_Error* guarded(Body body) {
    try {
        body();
        return nullptr;
    } catch (const BadInput& error) {
        return triton.error(ErrorCode::invalid_arg, error.what());
    } catch (const std::bad_alloc&) {
        return triton.error(ErrorCode::unavailable, "out of memory");
    } catch (const std::exception& error) {
        return triton.error(ErrorCode::internal, error.what());
    }
}

// To the system, what a version had in small pieces, its cached logits above all: glibc would keep
// them for a use that may never come. jemalloc gives back by itself.
void give_back() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

}  // namespace

TRITON_EXPORT TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
    if (const char* missing = triton.load()) {
        if (!triton.ErrorNew) return nullptr;  // every later call needs it and fails by itself
        return triton.error(ErrorCode::unsupported, std::string("this server has no ") + missing +
                                                        ", expected Triton 23.10 or newer");
    }
    return guarded([] {
        std::uint32_t major = 0, minor = 0;
        triton.check(triton.BACKEND_ApiVersion(&major, &minor));
        if (major != kApiMajor || minor < kApiMinor)
            throw BadInput("the server speaks backend API " + std::to_string(major) + "." +
                           std::to_string(minor) + ", expected 1.16 or a later 1.x; use another release");
    });
}

TRITON_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* model) {
    return guarded([&] {
        auto version = std::make_unique<Version>(model);
        triton.check(triton.BACKEND_ModelSetState(model, version.get()));
        version.release();
    });
}

TRITON_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* model) {
    return guarded([&] {
        void* state = nullptr;
        triton.check(triton.BACKEND_ModelState(model, &state));
        delete static_cast<Version*>(state);
        give_back();
    });
}

TRITON_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(
    TRITONBACKEND_ModelInstance* handle) {
    return guarded([&] {
        TRITONBACKEND_Model* model = nullptr;
        void* version = nullptr;
        triton.check(triton.BACKEND_ModelInstanceModel(handle, &model));
        triton.check(triton.BACKEND_ModelState(model, &version));
        auto instance = std::make_unique<Instance>(handle, *static_cast<Version*>(version));
        triton.check(triton.BACKEND_ModelInstanceSetState(handle, instance.get()));
        instance.release();
    });
}

TRITON_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(
    TRITONBACKEND_ModelInstance* handle) {
    return guarded([&] {
        void* state = nullptr;
        triton.check(triton.BACKEND_ModelInstanceState(handle, &state));
        delete static_cast<Instance*>(state);
    });
}

TRITON_EXPORT TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(
    TRITONBACKEND_ModelInstance* handle, TRITONBACKEND_Request** requests, const std::uint32_t count) {
    void* state = nullptr;
    if (TRITONSERVER_Error* error = triton.BACKEND_ModelInstanceState(handle, &state)) return error;
    static_cast<Instance*>(state)->execute(requests, count);
    return nullptr;
}
