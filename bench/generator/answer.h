// Reads an HTTP/1.1 answer out of the bytes that came so far.
#pragma once

#include <string>
#include <string_view>

namespace generator {

enum class Progress { more, whole, broken };

struct Answer {
  Progress progress = Progress::more;
  int status = 0;
  std::string_view body;     // of a whole answer; points into the given bytes or into `joined`
  bool close = false;        // the server ends the connection behind it
  const char* fault = "";    // why it is broken
};

// `joined` takes the body of an answer in chunks; it must outlive the Answer.
Answer read_answer(std::string_view bytes, std::string& joined);

}  // namespace generator
