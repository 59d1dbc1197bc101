// Flags of `open_loop`; what they mean is in `usage`.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace generator {

// A flag or a file that cannot be used as it is; one line for people, exit status 2.
struct BadInput : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Options {
  std::string host = "127.0.0.1";
  int port = 8000;
  std::string path = "/";
  std::vector<std::string> headers;  // "Name: value"
  std::string bodies;
  std::string must_contain;
  std::string record;
  double rate = 0;  // requests a second; 0: closed loop
  bool poisson = true;
  std::uint64_t seed = 0;
  double seconds = 10;
  int connections = 1;
  double timeout_s = 60;
  double drain_s = 20;
  bool help = false;
};

extern const char* const usage;

// Raises BadInput.
Options parse_options(int argc, const char* const* argv);

}  // namespace generator
