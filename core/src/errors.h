// The one exception of the core: an input that cannot be used, in one line for the user.
#pragma once

#include <stdexcept>
#include <string>

namespace toxicity {

// Reads "<what> is <got>, expected <want>; <remedy>", as BadInput of contract.py does.
struct BadInput : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace toxicity
