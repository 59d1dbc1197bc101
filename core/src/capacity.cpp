#include "capacity.h"

namespace toxicity {

double Capacity::after(std::int64_t comments, double busy_s, double now_s) {
    const std::lock_guard<std::mutex> held(lock_);
    const auto number = static_cast<std::int64_t>(now_s / kSlot_s);
    Slot& newest = slots_[static_cast<std::size_t>(number) % slots_.size()];
    if (newest.number != number) newest = {number, 0, 0};
    newest.comments += comments;
    newest.busy_s += busy_s;
    std::int64_t all = 0;
    double busy = 0;
    for (const Slot& slot : slots_) {
        if (slot.number < 0 || number - slot.number >= static_cast<std::int64_t>(slots_.size())) continue;
        all += slot.comments;
        busy += slot.busy_s;
    }
    return busy > 0 ? static_cast<double>(all) / busy : 0;
}

}  // namespace toxicity
