// A strict reader of the JSON that this project writes: tokenizer.json, artifact.json and Triton's
// configuration of a model.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace toxicity {

struct Json {
    enum class Kind { null, boolean, number, string, array, object };

    Kind kind = Kind::null;
    bool boolean = false;
    std::string text;  // of a string; of a number as it is written
    std::vector<Json> items;
    std::vector<std::pair<std::string, Json>> members;

    // Whole text, at most 64 levels deep. Throws BadInput; `what` names the document in it.
    static Json parse(std::string_view text, const std::string& what);

    // nullptr where there is no such member, or this is no object.
    const Json* find(std::string_view name) const;
    // These throw BadInput for another kind; `what` names the value.
    const Json& at(std::string_view name) const;
    const std::string& as_string(const char* what) const;
    std::int64_t as_integer(const char* what) const;
    const std::vector<Json>& as_array(const char* what) const;
};

}  // namespace toxicity
