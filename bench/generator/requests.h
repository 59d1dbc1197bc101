// What is sent, and when it is due: all made before the load starts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "options.h"

namespace generator {

// Whole HTTP requests, one behind the other: head and body of the n-th in one piece.
class Requests {
 public:
  // Reads `options.bodies`. Raises BadInput when the file is not of the form in `usage`.
  explicit Requests(const Options& options);

  std::size_t size() const { return ends_.size(); }
  std::string_view operator[](std::size_t n) const {
    const std::size_t begin = n == 0 ? 0 : ends_[n - 1];
    return {bytes_.data() + begin, ends_[n] - begin};
  }

 private:
  std::string bytes_;
  std::vector<std::size_t> ends_;
};

// Intended send times in ns after the start, below `options.seconds`; empty for a closed loop.
std::vector<std::int64_t> schedule(const Options& options);

}  // namespace generator
