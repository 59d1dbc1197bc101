// How much of what waits an instance takes on: the bound on the queue of the served model.
//
// Triton hands over everything that waits, up to MAX_REQUEST_COMMENTS, in one call, and queues what
// arrives during the call, unseen and without a bound; its own bounds stall (deploy/README.md). So
// the call is what must stay short. Normally it takes on what can begin within CALM_WAIT_S, or a
// whole batch if that is more, and refuses the rest. Once it had to, it takes on what can begin
// within OVERLOADED_WAIT_S only, until that was enough for a while. A call that is full says that
// more waits behind it: where all were for a while, each one halves the share that is taken on, each
// other one raises it again. So Triton's queue is emptied every few milliseconds and cannot grow
// however quick the model is, a refusal comes that quickly, and the model works without a pause.
//
// What is counted is rows of the encoder's batches: a comment, or each window of a long one.
//
// Clients that send again the moment they are refused would keep that state up, though they fit in
// the calm one. So it ends by itself after a time, at a call that is not full; that time is twice as
// long each time it comes straight back.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace toxicity {

// Decides for one instance. Starts without a limit, until a first call was timed.
class Admission {
  public:
    // How many of the requests, in order, to score now; the others are to be refused. `rows` has
    // those of each request, `comments` counts those of all, `largest` those of the largest. The
    // first one is admitted unless more waits behind a full call, so that a large request is not
    // refused for its own size. `now_s` is of any steady clock.
    std::size_t admit(const std::vector<int>& rows, double now_s, std::int64_t comments,
                      std::int64_t largest);
    // Learn from a call that scored so many rows in so much time.
    void observe(int rows, double seconds);
    // A call that was admitted is answered: how much of the time calls take says whether a queue is
    // ever empty.
    void ended(double now_s) { ended_s_ = now_s; }
    bool overloaded() const { return overloaded_; }

  private:
    void leave_if_time(double now_s);
    bool is_full(std::int64_t comments, std::int64_t largest);
    std::size_t fitting(const std::vector<int>& rows, double seconds, double least) const;
    std::size_t share_of(const std::vector<int>& rows);
    void note_idle(double now_s);

    bool overloaded_ = false;
    double seconds_a_row_ = 0, stay_s_ = 0.5, entered_s_ = 0, exceeded_s_ = 0;
    double full_since_s_ = -1;  // first of the full calls in a row, or -1
    double share_ = 1, owed_rows_ = 0;  // taken on of a full call, and what rounding left of it
    double began_s_ = 0, ended_s_ = -1;  // the last call
    double busy_ = 0;  // share of the time that calls took, smoothed
    std::array<std::int64_t, 8> largest_{};  // requests of the last calls, in comments
    std::size_t call_ = 0;
};

}  // namespace toxicity
