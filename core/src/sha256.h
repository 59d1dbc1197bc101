// SHA-256 (FIPS 180-4), for the manifest of a version.
#pragma once

#include <string>
#include <string_view>

namespace toxicity {

// 64 hexadecimal digits.
std::string sha256(std::string_view bytes);

}  // namespace toxicity
