// ONNX Runtime through its C API, from a shared library that is opened at run time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace toxicity {

// One row of a batch: ids[0], which is [CLS], then `length` - 1 ids from ids[1 + skip] on.
struct Row {
    const std::int32_t* ids;
    int skip, length;
};

class OnnxRuntime;

// The graph of one version with one thread. Not for several threads at once.
class Session {
  public:
    // `library` is the path of libonnxruntime.so, `graph` the bytes of a model with the tensors of
    // contract.py, dense or ragged. `gpu` is the number of a GPU, or -1 for the CPU. Throws
    // BadInput for another graph, or without the GPU's provider.
    Session(const std::string& library, std::string_view graph, int gpu);
    Session(Session&&) noexcept;
    ~Session();

    // Logits that a row has: toxicity's, then those of the attributes that the graph gives.
    std::size_t width() const { return 1 + attributes_; }
    // `width` logits each of 1 row or more, in their order. Throws std::runtime_error with ONNX
    // Runtime's words.
    void run(const std::vector<Row>& rows, float* logits);

  private:
    void check_tensors();
    void check_outputs();
    void close();
    void run_tensors(const void* const inputs[2], const std::size_t bytes[2],
                     const std::int64_t shape[2][2], std::size_t rows, float* logits);
    void copy_logits(void* tensor, std::size_t rows, std::size_t columns, float* logits) const;

    std::shared_ptr<const OnnxRuntime> runtime_;
    void* session_ = nullptr;
    void* memory_ = nullptr;
    bool ragged_ = false;
    std::size_t attributes_ = 0;
    std::vector<std::int64_t> ids_, mask_;
    std::vector<std::int32_t> counts_;
};

}  // namespace toxicity
