/* Plays the chunks of the policy "chunked" for as long as a test needs, through restarts of the daemon.
 *
 *     player RUNTIME_DIR SERVICE CHUNKS [trap|large [ROBOT]]
 *
 * It prints "attached", a line for each 50 chunks, "away" and "back" as the service is lost and found, and "done" after
 * CHUNKS. A row that is played twice, or whose contents are not those of its number, ends it. With `trap`, what a
 * real-time call may not do ends it as well. With `large` it begins with too little room for a chunk, and also prints
 * how often the channel grew and how many requests failed. ROBOT is what the robot states of its numbers: it prints
 * "refused" and "agrees" as the models change, and ends if a row of a model that was refused is played.
 */

#define PAUSES_BETWEEN_STEPS
#include "../c_programs/real_time_calls.h"

#include <shmserve_action_chunks.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <time.h>

namespace {

constexpr std::uint64_t period_ns = 1'000'000, rows_count = 30'000;
constexpr std::uint32_t width = 4;
bool is_trapping = false;

[[noreturn]] void stop(const char *what)
{
    arm(0);
    (void)std::fprintf(stderr, "%s\n", what);
    std::_Exit(1);
}

void say(const char *text, unsigned long long number)
{
    arm(0);
    (void)std::printf(text, number);
    arm(is_trapping);
}

} // namespace

int main(int count, char **arguments)
{
    static char printed[1 << 12];
    if (count < 4)
        return 2;
    std::uint64_t wanted = std::strtoull(arguments[3], nullptr, 10);
    shmserve::Options options;
    options.runtime_dir = arguments[1];
    options.service = arguments[2];
    if (count > 5)
        options.robot = arguments[5];
    std::setvbuf(stdout, printed, _IOLBF, sizeof printed);
    auto client = shmserve::Client::open_later(options).value();
    bool is_large = count > 4 && std::strcmp(arguments[4], "large") == 0;
    auto schema =
        client.declare({is_large ? shmserve::array<float>("actions", {rows_count, width}) : shmserve::integer("step")})
            .value();
    shmserve::ChunkOptions rules;
    rules.steps = 8;
    rules.prefetch = 4;
    rules.overrun_steps = is_large ? 20000 : 8;
    rules.period_ns = period_ns;
    rules.width = width;
    rules.fallback = shmserve::Fallback::hold;
    auto chunks = shmserve::ActionChunks<float>::make(std::move(client), schema, rules).value();
    std::int64_t tick = 0;
    auto observe = [&](shmserve::Loan &loan) -> shmserve::Result<void> {
        if (!is_large)
            return loan.set("step", tick);
        auto rows = loan.span<float>("actions", rows_count * width);
        if (!rows)
            return rows.error();
        for (std::size_t row = 0; row < rows_count; row++)
            (*rows)[row * width + 1] = static_cast<float>(row);
        return {};
    };
    while (!chunks.step(observe))
        shmserve::detail::pause_ns(period_ns);
    (void)std::printf("attached\n");
    is_trapping = count > 4 && std::strcmp(arguments[4], "trap") == 0;
    if (is_trapping)
        allow_real_time_calls_only(1); /* the period of its steps is a statement about its numbers, too */
    arm(is_trapping);
    std::uint64_t said = 0, last_chunk = 0;
    std::int64_t last_row = -1;
    bool is_away = false, is_refused = false;
    while (chunks.stats().chunks < wanted) {
        tick++;
        auto step = chunks.step(observe);
        bool refused = step ? step->error == shmserve::Status::mismatch : step.status() == shmserve::Status::mismatch;
        if (count > 5 && refused != is_refused)
            say(refused ? "refused %llu\n" : "agrees %llu\n", static_cast<unsigned long long>(tick));
        is_refused = refused;
        if (count > 5 && !step && refused) {
            shmserve::detail::pause_ns(period_ns);
            continue;
        }
        if (!step)
            stop(step.error().text);
        if (count > 5 && step->action[2] != 1)
            stop("a row of a model that was refused");
        if (step->source == shmserve::Source::chunk || step->source == shmserve::Source::overrun) {
            if (step->chunk < last_chunk || (step->chunk == last_chunk && step->index <= last_row))
                stop("a row was played twice");
            last_chunk = step->chunk;
            last_row = step->index;
        }
        if (step->index != last_row || static_cast<std::int64_t>(step->action[1]) != last_row)
            stop("the row of another step");
        bool away = shmserve::detail::is_away(step->error);
        if (away != is_away)
            say(away ? "away %llu\n" : "back %llu\n", static_cast<unsigned long long>(tick));
        is_away = away;
        if (chunks.stats().chunks / 50 != said) {
            said = chunks.stats().chunks / 50;
            say("%llu\n", static_cast<unsigned long long>(said * 50));
        }
        shmserve::detail::pause_ns(period_ns);
    }
    arm(0);
    if (is_large)
        (void)std::printf("failed %llu, the channel grew: %d\n", static_cast<unsigned long long>(chunks.stats().errors),
                          chunks.port().stats().resized > 0);
    (void)std::printf("done\n");
    (void)std::fflush(stdout);
    if (is_trapping)
        std::_Exit(0); /* to close is an [S] call */
    return 0;
}
