/* Plays the chunks of a package of tests/support/joint_packages.py, a step each PERIOD_NS, until its input ends.
 *
 *     chunk_rate RUNTIME_DIR SERVICE PERIOD_NS
 *
 * It prints a line whenever it differs from the one before: "plays VERSION" for an action of a chunk, and the text of an
 * error that speaks of rates, with | for its line ends. With PERIOD_NS 0 it counts steps.
 */

#include <shmserve_action_chunks.hpp>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <poll.h>
#include <string>

namespace {

void say(const std::string &line)
{
    static std::string before;
    if (line != before)
        std::printf("%s\n", line.c_str());
    before = line;
}

} // namespace

int main(int count, char **arguments)
{
    if (count != 4)
        return 2;
    shmserve::Options options;
    options.runtime_dir = arguments[1];
    options.service = arguments[2];
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
    auto client = shmserve::Client::open_later(options).value();
    auto schema = client
                      .declare({shmserve::array<float>("state", {3}), shmserve::array<float>("points", {5, 3}),
                                shmserve::array<std::uint8_t>("camera", {4, 6, 3})})
                      .value();
    shmserve::ChunkOptions rules;
    rules.steps = 8;
    rules.prefetch = 4;
    rules.overrun_steps = 8;
    rules.period_ns = std::strtoull(arguments[3], nullptr, 10);
    rules.width = 3;
    rules.fallback = shmserve::Fallback::raise;
    auto chunks = shmserve::ActionChunks<float>::make(std::move(client), schema, rules).value();
    const std::uint64_t pause_ns = rules.period_ns != 0 ? rules.period_ns : 1'000'000;
    const float joints[] = {0.5f, 1, 2};
    pollfd input{0, POLLIN, 0};
    while (poll(&input, 1, 0) == 0) {
        auto step = chunks.step([&](shmserve::Loan &loan) { return loan.copy("state", joints, 3); });
        char version[32];
        if (step) {
            (void)std::snprintf(version, sizeof version, "plays %016" PRIx64, step->version);
            say(version);
        }
        else if (std::string text = step.error().text; text.find("rate") != std::string::npos) {
            std::replace(text.begin(), text.end(), '\n', '|');
            say(text);
        }
        shmserve::detail::pause_ns(pause_ns);
    }
    return 0;
}
