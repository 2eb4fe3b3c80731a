// A 1 kHz control loop that asks a policy 50 times a second and plays its action chunks.
//
//     control_loop [SERVICE [SECONDS [TRACE_FILE]]]
//
// The loop itself allocates nothing, takes no lock and never waits for the policy. It may start before its daemon.
// Without an action the joints stop (Fallback::zero). The robot is simulated: six joints that move with the velocity
// they are given.

#include <shmserve_action_chunks.hpp>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>
#include <vector>

namespace {

constexpr std::uint64_t period_ns = 1'000'000;
constexpr std::uint32_t joints_count = 6,
                        width = joints_count + 1; // a row is six velocities, and the tick it is meant for

volatile std::sig_atomic_t stopped = 0;

void stop(int) { stopped = 1; }

struct TraceLine {
    std::uint64_t tick, chunk;
    std::int64_t row;
    const char *source;
    float velocity, meant_for;
};

void become_real_time()
{
    sched_param priority{};
    priority.sched_priority = 80;
    if (sched_setscheduler(0, SCHED_FIFO, &priority) == 0)
        std::printf("scheduling: SCHED_FIFO, priority %d\n", priority.sched_priority);
    else
        std::printf("scheduling: ordinary, SCHED_FIFO is not allowed (%s): raise the limit rtprio\n",
                    std::strerror(errno));
    if (mlockall(MCL_CURRENT | MCL_FUTURE) == 0)
        std::printf("memory: locked\n");
    else
        std::printf("memory: not locked (%s): raise the limit memlock\n", std::strerror(errno));
}

std::uint64_t sleep_until(std::uint64_t wake_ns)
{
    timespec wake{static_cast<time_t>(wake_ns / 1'000'000'000), static_cast<long>(wake_ns % 1'000'000'000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &wake, nullptr) == EINTR && !stopped)
        ;
    return shmserve::now_ns();
}

const char *name_of(shmserve::Source source)
{
    static const char *const names[] = {"chunk", "overrun", "hold", "repeat_last", "zero"};
    return names[static_cast<int>(source)];
}

} // namespace

int main(int count, char **arguments)
{
    std::setvbuf(stdout, nullptr, _IOLBF, 1 << 12);
    (void)std::signal(SIGINT, stop);
    (void)std::signal(SIGTERM, stop);
    double seconds = count > 2 ? std::atof(arguments[2]) : 5.0;
    auto ticks = static_cast<std::uint64_t>(seconds * 1e9) / period_ns;
    std::vector<TraceLine> trace;
    if (count > 3)
        trace.reserve(ticks + 1);

    // Set-up: these calls may allocate and wait.
    shmserve::Options options;
    options.service = count > 1 ? arguments[1] : "default";
    options.period_ns = 20 * period_ns;
    options.lock_memory = 1;
    auto client = shmserve::Client::open_later(options);
    if (!client) {
        std::fprintf(stderr, "no client: %s\n", client.error().text);
        return 1;
    }
    auto schema = client->declare({shmserve::array<float>("joints", {joints_count}),
                                   shmserve::array<float>("goal", {joints_count}), shmserve::integer("tick")});
    if (!schema) {
        std::fprintf(stderr, "another observation: %s\n", schema.error().text);
        return 1;
    }
    shmserve::ChunkOptions rules;
    rules.steps = 30;
    rules.prefetch = 10; // a request each steps - prefetch periods: 20 ms
    rules.overrun_steps = 20;
    rules.period_ns = period_ns;
    rules.width = width;
    rules.fallback = shmserve::Fallback::zero;
    auto chunks = shmserve::ActionChunks<float>::make(std::move(*client), *schema, rules);
    if (!chunks) {
        std::fprintf(stderr, "no chunks: %s\n", chunks.error().text);
        return 1;
    }
    become_real_time();

    // The loop.
    float joints[joints_count] = {}, goal[joints_count] = {0.5f, -0.5f, 0.25f, -0.25f, 0.1f, -0.1f};
    std::uint64_t missed = 0, stopped_ticks = 0, replayed = 0, tick = 0, last_chunk = 0;
    float last_meant_for = 0;
    shmserve::Status refused = shmserve::Status::ok;
    std::uint64_t begin_ns = shmserve::now_ns();
    while (tick < ticks && !stopped) {
        shmserve::StepOptions terms;
        terms.capture_ns = shmserve::now_ns();
        auto step = chunks->step(
            [&](shmserve::Loan &loan) -> shmserve::Result<void> {
                if (auto copied = loan.copy("joints", joints, joints_count); !copied)
                    return copied;
                if (auto copied = loan.copy("goal", goal, joints_count); !copied)
                    return copied;
                return loan.set("tick", static_cast<std::int64_t>(tick));
            },
            terms);
        if (step) {
            for (std::uint32_t joint = 0; joint < joints_count; joint++)
                joints[joint] += step->action[joint] * 1e-3f;
            if (step->source == shmserve::Source::chunk || step->source == shmserve::Source::overrun) {
                // Rows of one chunk come in their order, and no chunk comes again.
                float meant_for = step->action[joints_count];
                replayed += step->chunk < last_chunk || (step->chunk == last_chunk && meant_for <= last_meant_for);
                last_chunk = step->chunk;
                last_meant_for = meant_for;
            }
            if (trace.size() < trace.capacity())
                trace.push_back({tick, step->chunk, step->index, name_of(step->source), step->action[0],
                                 step->action[joints_count]});
        }
        else {
            stopped_ticks++; // the joints get no velocity
            if (step.status() != shmserve::Status::no_fresh_action)
                refused = step.status();
        }
        std::uint64_t woken_ns = sleep_until(begin_ns + (tick + 1) * period_ns);
        std::uint64_t late = (woken_ns - begin_ns) / period_ns - (tick + 1);
        missed += stopped ? 0 : late;
        tick += 1 + (stopped ? 0 : late);
    }

    // The ledger.
    const shmserve::ChunkStats &stats = chunks->stats();
    auto number = [](std::uint64_t value) { return static_cast<unsigned long long>(value); };
    std::printf("ticks: %llu, missed %llu\n", number(tick), number(missed));
    std::printf("chunks: %llu, late %llu, failed requests %llu, other models %llu\n", number(stats.chunks),
                number(stats.late_chunks), number(stats.errors), number(stats.version_changes));
    std::printf("steps: fresh %llu, overrun %llu, fallback %llu, without an action %llu\n", number(stats.fresh),
                number(stats.overrun), number(stats.fallback), number(stopped_ticks));
    std::printf("rows: skipped %llu, replayed %llu\n", number(stats.skipped), number(replayed));
    if (refused != shmserve::Status::ok)
        std::printf("refused: %s\n", shmserve::text_of(refused));
    float distance = 0;
    for (std::uint32_t joint = 0; joint < joints_count; joint++)
        distance = std::max(distance, std::fabs(goal[joint] - joints[joint]));
    std::printf("the goal is missed by %.3f\n", static_cast<double>(distance));
    if (count > 3) {
        std::FILE *file = std::fopen(arguments[3], "w");
        if (file == nullptr) {
            std::fprintf(stderr, "%s: %s\n", arguments[3], std::strerror(errno));
            return 1;
        }
        for (const TraceLine &line : trace)
            std::fprintf(file, "%llu %s %llu %lld %g %.0f\n", number(line.tick), line.source, number(line.chunk),
                         static_cast<long long>(line.row), static_cast<double>(line.velocity),
                         static_cast<double>(line.meant_for));
        (void)std::fclose(file);
    }
    return replayed != 0;
}
