// What an instance of the served model could do, from what it does.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace toxicity {

// Comments for each second that the instances were busy with them, over the last minute: so many a
// second could one instance score without a pause, at the batches and with the repeated comments of
// that minute. All instances of a version share one.
class Capacity {
  public:
    // The same, once a call that ended at `now_s` scored so many comments in `busy_s`; 0 while none
    // took any time. `now_s` is of any steady clock.
    double after(std::int64_t comments, double busy_s, double now_s);

  private:
    static constexpr double kSlot_s = 5;
    struct Slot {
        std::int64_t number = -1;  // of the five seconds since the clock began
        std::int64_t comments = 0;
        double busy_s = 0;
    };
    std::mutex lock_;
    std::array<Slot, 12> slots_{};
};

}  // namespace toxicity
