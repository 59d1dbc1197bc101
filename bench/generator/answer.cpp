#include "answer.h"

#include <strings.h>

#include <cstddef>
#include <cstdint>

namespace generator {
namespace {

constexpr std::size_t kMostHead = 64 << 10;
constexpr std::size_t kMostBody = 64 << 20;

struct Head {
  std::size_t length = 0;
  bool has_length = false;
  bool chunked = false;
  bool close = false;
  bool good = true;
};

bool same(std::string_view a, std::string_view b) {
  return a.size() == b.size() && strncasecmp(a.data(), b.data(), a.size()) == 0;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

// A number of at most kMostBody in base 10 or 16; false when it is none.
bool parse_size(std::string_view text, unsigned base, std::size_t& value) {
  value = 0;
  for (const char c : text) {
    unsigned digit = 99;
    if (c >= '0' && c <= '9') digit = static_cast<unsigned>(c - '0');
    if (c >= 'a' && c <= 'f') digit = static_cast<unsigned>(c - 'a') + 10;
    if (c >= 'A' && c <= 'F') digit = static_cast<unsigned>(c - 'A') + 10;
    if (digit >= base) return false;
    value = value * base + digit;
    if (value > kMostBody) return false;
  }
  return !text.empty();
}

Head parse_head(std::string_view lines) {
  Head head;
  while (!lines.empty()) {
    const std::size_t end = lines.find("\r\n");
    const std::string_view line = lines.substr(0, end);
    lines.remove_prefix(end == std::string_view::npos ? lines.size() : end + 2);
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    const std::string_view name = line.substr(0, colon);
    const std::string_view value = trimmed(line.substr(colon + 1));
    if (same(name, "Content-Length")) {
      head.has_length = true;
      head.good = head.good && parse_size(value, 10, head.length);
    } else if (same(name, "Transfer-Encoding")) {
      head.chunked = same(value, "chunked");
      head.good = head.good && head.chunked;
    } else if (same(name, "Connection")) {
      head.close = same(value, "close");
    }
  }
  return head;
}

// The body's chunks from `at` on, joined; trailers are read over.
Progress join_chunks(std::string_view bytes, std::size_t at, std::string& joined) {
  joined.clear();
  while (true) {
    const std::size_t end = bytes.find("\r\n", at);
    if (end == std::string_view::npos) {
      return bytes.size() - at > 1024 ? Progress::broken : Progress::more;
    }
    std::string_view line = bytes.substr(at, end - at);
    std::size_t size = 0;
    if (!parse_size(trimmed(line.substr(0, line.find(';'))), 16, size)) return Progress::broken;
    at = end + 2;
    if (size == 0) break;
    if (bytes.size() < at + size + 2) return Progress::more;
    if (bytes.substr(at + size, 2) != "\r\n") return Progress::broken;
    joined.append(bytes.substr(at, size));
    if (joined.size() > kMostBody) return Progress::broken;
    at += size + 2;
  }
  while (true) {  // trailers, then an empty line
    const std::size_t end = bytes.find("\r\n", at);
    if (end == std::string_view::npos) return Progress::more;
    if (end == at) return bytes.size() == end + 2 ? Progress::whole : Progress::broken;
    at = end + 2;
  }
}

Answer broken(const char* why) {
  Answer answer;
  answer.progress = Progress::broken;
  answer.fault = why;
  return answer;
}

}  // namespace

Answer read_answer(std::string_view bytes, std::string& joined) {
  constexpr std::string_view kVersion = "HTTP/1.";
  constexpr std::size_t kStatusAt = 9;
  const std::size_t compared = bytes.size() < kVersion.size() ? bytes.size() : kVersion.size();
  if (bytes.substr(0, compared) != kVersion.substr(0, compared)) return broken("is not HTTP/1.1");
  const std::size_t end = bytes.find("\r\n\r\n");
  if (end == std::string_view::npos) {
    return bytes.size() > kMostHead ? broken("has a head without an end") : Answer{};
  }
  std::size_t status = 0;
  if (end < kStatusAt + 3 || !parse_size(bytes.substr(kStatusAt, 3), 10, status) || status < 200) {
    return broken("has no status from 200 on");
  }
  const std::size_t line = bytes.find("\r\n");
  const Head head = parse_head(line == end ? "" : bytes.substr(line + 2, end - line - 2));
  if (!head.good) return broken("has a Content-Length or Transfer-Encoding that cannot be read");
  Answer answer;
  answer.status = static_cast<int>(status);
  answer.close = head.close || bytes[kVersion.size()] == '0';
  const std::size_t body = end + 4;
  if (head.chunked) {
    answer.progress = join_chunks(bytes, body, joined);
    answer.body = joined;
    if (answer.progress == Progress::broken) return broken("has chunks that cannot be read");
    return answer;
  }
  if (!head.has_length) return broken("has neither Content-Length nor chunks");
  if (bytes.size() > body + head.length) return broken("is longer than its Content-Length");
  answer.body = bytes.substr(body, head.length);
  if (answer.body.size() == head.length) answer.progress = Progress::whole;
  return answer;
}

}  // namespace generator
