/* Does the same as c_programs/gr00t.c, with shmserve.hpp. */

#include <shmserve.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

using shmserve::any_count;

const std::string task = "fold";
const std::string language = "language/annotation.human.task_description";

void print_shape(const shmserve::Reply &reply)
{
    int index = shmserve_find(reply.info().schema, "0/single_arm");
    const shmserve_entry *entries;
    (void)shmserve_entries(reply.info().schema, &entries);
    for (std::uint32_t at = 0; index >= 0 && at < entries[index].dims; at++)
        std::printf(" %llu", static_cast<unsigned long long>(reply.info().views[index].shape[at]));
}

void print_error(const shmserve::Error &error)
{
    std::printf("%d", static_cast<int>(error.status));
    for (const char *line = std::strstr(error.text, "\n  "); line != nullptr; line = std::strstr(line + 1, "\n  "))
        std::printf("\n%.*s", static_cast<int>(std::strcspn(line + 1, "\n")), line + 1);
    std::printf("\n");
}

shmserve::Result<void> ask(shmserve::Client &client, const std::string &asked)
{
    unsigned batch = 1, time = 1, height = 4, width = 6, joints = 5;
    const bool is_call = asked != "bare", is_reset = asked == "reset";
    if (is_call && !is_reset)
        (void)std::sscanf(asked.c_str(), "%u,%u,%u,%u,%u", &batch, &time, &height, &width, &joints);
    const std::string at = is_call ? "data/observation/" : "", endpoint = is_reset ? "reset" : "get_action";
    const std::string video = at + "video/front", state = at + "state/single_arm", rows = at + language;
    const std::string row = rows + "/0", words = row + "/0";
    std::vector<shmserve_entry> entries;
    std::vector<std::uint64_t> sizes;
    if (is_call) {
        entries.push_back(shmserve::text("endpoint"));
        sizes.push_back(endpoint.size());
    }
    if (!is_reset) {
        entries.push_back(shmserve::array<std::uint8_t>(video.c_str(), {any_count, any_count, any_count, any_count, 3}));
        entries.push_back(shmserve::array<float>(state.c_str(), {any_count, any_count, any_count}));
        entries.push_back(shmserve::entry(SHMSERVE_SEQUENCE, rows.c_str()));
        entries.push_back(shmserve::entry(SHMSERVE_SEQUENCE, row.c_str()));
        entries.push_back(shmserve::text(words.c_str()));
        for (std::uint64_t size : {batch, time, height, width, 3u, batch, time, joints})
            sizes.push_back(size);
        sizes.push_back(task.size());
    }
    if (is_call)
        entries.push_back(shmserve::entry(SHMSERVE_NONE, "data/options"));
    auto schema = client.declare(shmserve::span<const shmserve_entry>(entries.data(), entries.size()));
    if (!schema)
        return schema.error();
    auto loan = client.loan(*schema, shmserve::span<const std::uint64_t>(sizes.data(), sizes.size()));
    if (!loan)
        return loan.error();
    const std::vector<std::uint8_t> pixels(std::size_t{batch} * time * height * width * 3);
    const std::vector<float> arm(std::size_t{batch} * time * joints);
    if (is_call)
        if (auto copied = loan->copy("endpoint", endpoint); !copied)
            return copied;
    if (!is_reset) {
        if (auto copied = loan->copy(video.c_str(), pixels.data(), pixels.size()); !copied)
            return copied;
        if (auto copied = loan->copy(state.c_str(), arm.data(), arm.size()); !copied)
            return copied;
        if (auto copied = loan->copy(words.c_str(), task); !copied)
            return copied;
    }
    auto reply = loan->ask(shmserve::now_ns() + 60'000'000'000);
    if (!reply)
        return reply.error();
    std::printf("0");
    print_shape(*reply);
    std::printf("\n");
    return {};
}

} // namespace

int main(int count, char **arguments)
{
    if (count < 5)
        return 2;
    shmserve::Options options;
    options.runtime_dir = arguments[1];
    options.service = arguments[2];
    options.check_contract = static_cast<std::uint32_t>(std::atoi(arguments[3]));
    options.request_bytes = options.reply_bytes = 1 << 20;
    auto client = shmserve::Client::open(options, 60'000'000'000);
    if (!client) {
        std::fprintf(stderr, "%s\n", client.error().text);
        return 1;
    }
    for (int index = 4; index < count; index++)
        if (auto asked = ask(*client, arguments[index]); !asked)
            print_error(asked.error());
    return 0;
}
