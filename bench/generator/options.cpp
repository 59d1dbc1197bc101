#include "options.h"

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace generator {
namespace {

[[noreturn]] void refuse(const std::string& flag, const std::string& got, const std::string& want) {
  throw BadInput(flag + " is '" + got + "', expected " + want + "; open_loop --help lists flags");
}

double number(const std::string& flag, const std::string& text, double least) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(value) || value < least || value > 1e9) {
    refuse(flag, text, "a number from " + std::to_string(least) + " on");
  }
  return value;
}

std::uint64_t whole(const std::string& flag, const std::string& text, std::uint64_t least,
                    std::uint64_t most) {
  const bool digits =
      !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  errno = 0;
  const std::uint64_t value = digits ? std::strtoull(text.c_str(), nullptr, 10) : 0;
  if (!digits || errno != 0 || value < least || value > most) {
    refuse(flag, text, std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

// What would end a line of the request early has no place in it.
std::string one_line(const std::string& flag, const std::string& text) {
  if (text.empty() || text.find_first_of("\r\n") != std::string::npos) {
    refuse(flag, text, "one line that is not empty");
  }
  return text;
}

std::string header(const std::string& flag, const std::string& text) {
  const auto colon = one_line(flag, text).find(':');
  if (colon == std::string::npos || colon == 0) refuse(flag, text, "'Name: value'");
  return text;
}

}  // namespace

const char* const usage =
    "open_loop --port PORT --bodies FILE [flags]: send prepared HTTP requests, measure answers\n"
    "  --host HOST            127.0.0.1\n"
    "  --port PORT            8000\n"
    "  --path PATH            of each POST, /\n"
    "  --header 'NAME: VALUE' of each request; may be given again\n"
    "  --bodies FILE          u32 count, then for each body u32 length and bytes, little-endian\n"
    "  --rate R               requests/s, an open loop; 0, the default: a closed loop\n"
    "  --arrivals NAME        poisson (default) or constant, of the open loop\n"
    "  --seed N               of the arrivals, 0\n"
    "  --seconds S            length of the load, 10\n"
    "  --connections N        most connections; of a closed loop: users, 1\n"
    "  --timeout-s S          longest wait for one answer, 60\n"
    "  --drain-s S            longest wait for answers at the end, 20\n"
    "  --must-contain TEXT    an answer without these bytes counts as failed\n"
    "  --record FILE          exact times; see bench/generator/tally.h for the form\n";

Options parse_options(int argc, const char* const* argv) {
  Options options;
  constexpr auto any = std::numeric_limits<std::uint64_t>::max();
  for (int at = 1; at < argc; ++at) {
    const std::string flag = argv[at];
    if (flag == "--help") {
      options.help = true;
      return options;
    }
    if (at + 1 == argc || flag.rfind("--", 0) != 0) {
      throw BadInput("'" + flag + "' is not a flag with a value; open_loop --help lists flags");
    }
    const std::string value = argv[++at];
    if (flag == "--host") {
      options.host = one_line(flag, value);
    } else if (flag == "--port") {
      options.port = static_cast<int>(whole(flag, value, 1, 65535));
    } else if (flag == "--path") {
      options.path = one_line(flag, value);
    } else if (flag == "--header") {
      options.headers.push_back(header(flag, value));
    } else if (flag == "--bodies") {
      options.bodies = value;
    } else if (flag == "--rate") {
      options.rate = number(flag, value, 0);
    } else if (flag == "--arrivals") {
      options.poisson = value == "poisson";
      if (!options.poisson && value != "constant") refuse(flag, value, "poisson or constant");
    } else if (flag == "--seed") {
      options.seed = whole(flag, value, 0, any);
    } else if (flag == "--seconds") {
      options.seconds = number(flag, value, 0.001);
    } else if (flag == "--connections") {
      options.connections = static_cast<int>(whole(flag, value, 1, 100000));
    } else if (flag == "--timeout-s") {
      options.timeout_s = number(flag, value, 0.001);
    } else if (flag == "--drain-s") {
      options.drain_s = number(flag, value, 0);
    } else if (flag == "--must-contain") {
      options.must_contain = value;
    } else if (flag == "--record") {
      options.record = value;
    } else {
      throw BadInput("there is no flag '" + flag + "'; open_loop --help lists flags");
    }
  }
  if (options.bodies.empty()) {
    throw BadInput("--bodies is missing, expected a file; open_loop --help lists flags");
  }
  return options;
}

}  // namespace generator
