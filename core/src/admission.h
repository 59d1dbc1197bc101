// How much of what waits an instance takes on: the bound on the queue of the served model.
//
// Triton hands over everything that waits, up to MAX_REQUEST_COMMENTS, in one call, and queues what
// arrives during the call, unseen and without a bound; its own bounds stall (deploy/README.md). So
// the call is what must stay short. Normally it takes on what can begin within CALM_WAIT_S,
// or a whole batch if that is more, and refuses the rest. Once it had to, it takes on what can begin within OVERLOADED_WAIT_S only, until
// that was enough for a while: Triton's queue is emptied every few milliseconds and cannot grow, a
// refusal comes that quickly, and the model works without a pause.
//
// What is counted is rows of the encoder's batches: a comment, or each window of a long one.
//
// Clients that send again the moment they are refused would keep that state up, though they fit in
// the calm one. So it ends by itself after a time, twice as long each time it comes straight back.
#pragma once

#include <cstdint>
#include <vector>

namespace toxicity {

// Decides for one instance. Starts without a limit, until a first call was timed.
class Admission {
  public:
    // How many of the requests, in order, to score now; the others are to be refused. `rows` has
    // those of each request, `comments` counts those of all. The first one is always admitted, so
    // that a large request is not refused for its own size. `now_s` is of any steady clock.
    std::size_t admit(const std::vector<int>& rows, double now_s, std::int64_t comments);
    // Learn from a call that scored so many rows in so much time.
    void observe(int rows, double seconds);
    bool overloaded() const { return overloaded_; }

  private:
    void leave_if_time(double now_s);

    bool overloaded_ = false;
    double seconds_a_row_ = 0, stay_s_ = 0.5, entered_s_ = 0, exceeded_s_ = 0;
    double full_since_s_ = -1;  // first of the full calls in a row, or -1
};

}  // namespace toxicity
