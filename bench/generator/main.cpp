// A load generator for HTTP/1.1 of one thread, cheap enough to run beside what it measures.
//
//   open_loop --port 8000 --path /v2/models/toxicity/infer --bodies FILE --rate 1000 --seconds 10
//
// Prints one JSON document. bench/traffic/open_loop.py prepares the bodies and reads the result.
#include <csignal>
#include <cstdio>

#include "loop.h"
#include "options.h"
#include "requests.h"

namespace {

volatile std::sig_atomic_t stop = 0;

void stop_early(int) { stop = stop == 0 ? 1 : 2; }

}  // namespace

int main(int argc, char** argv) {
  using namespace generator;
  try {
    const Options options = parse_options(argc, argv);
    if (options.help) {
      std::fputs(usage, stdout);
      return 0;
    }
    const Requests requests(options);
    if (!options.record.empty()) Tally{}.write_record(options.record);  // before the long part
    struct sigaction action {};
    action.sa_handler = stop_early;  // without SA_RESTART, so that it ends a wait
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    Loop loop(options, requests);
    const Tally tally = loop.run(stop);
    if (!options.record.empty()) tally.write_record(options.record);
    std::puts(tally.to_json().c_str());
    return std::fflush(stdout) == 0 ? 0 : 1;
  } catch (const BadInput& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
