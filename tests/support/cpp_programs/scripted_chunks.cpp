/* The rules of action chunks in C++ against a clock, a policy and a connection that a script on standard input
 * controls.
 *
 * tests/support/chunk_script.py has the lines, and runs the same script against Python's.
 */

#include <shmserve_chunk_rules.hpp>

#include <cinttypes>
#include <cstdio>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>

using shmserve::Status;

namespace {

/* What the script says, and what came of it. */
struct World {
    std::uint64_t now_ns = 0;
    std::uint64_t latency_ns = 0, version = 1, rows = 0;
    int reply = 0, submit = 0;
    std::uint64_t connect_ns = 0;
    int connect = 0, unreachable = 0;
    bool connected = true;
    std::uint64_t left_over = 0, delays = 0;
    std::uint64_t requests = 0, expects = 0, cancels = 0, resets = 0, connects = 0;
};

class ScriptedPort {
  public:
    explicit ScriptedPort(World &world) : world_(&world) {}

    std::uint64_t now_ns() const { return world_->now_ns; }
    bool is_connected() const { return world_->connected; }
    const char *text() const { return "scripted"; }

    template <class Observe>
    shmserve::Result<void> submit(Observe &observe, shmserve::span<const std::uint64_t>, std::uint64_t, std::uint64_t,
                                  const shmserve::Continuation<float> &rest)
    {
        if (world_->submit != 0)
            return shmserve::Error{static_cast<Status>(world_->submit), "scripted"};
        world_->left_over += rest.count;
        world_->delays += static_cast<std::uint64_t>(rest.delay) * rest.count;
        observe(*this);
        ready_ns_ = world_->now_ns + world_->latency_ns;
        reply_.status = static_cast<Status>(world_->reply);
        reply_.text = "scripted";
        reply_.version = world_->version;
        reply_.count = world_->rows;
        rows_.clear();
        for (std::uint64_t row = 0; row < world_->rows; row++) {
            rows_.push_back(static_cast<float>(world_->requests));
            rows_.push_back(static_cast<float>(row));
        }
        reply_.rows = rows_.data();
        world_->requests++;
        return {};
    }
    bool look(shmserve::ChunkReply<float> &reply) const
    {
        if (world_->now_ns < ready_ns_)
            return false;
        reply = reply_;
        return true;
    }
    void release() {}
    void cancel() { world_->cancels++; }
    bool wait(std::uint64_t until_ns) { return pass(until_ns, ready_ns_); }

    void connect(std::uint64_t delay_ns)
    {
        world_->connects++;
        connected_ns_ = world_->now_ns + delay_ns + world_->connect_ns;
        connect_ = world_->connect;
        unreachable_ = world_->unreachable;
    }
    bool is_connecting(Status &status) const
    {
        bool is_busy = world_->now_ns < connected_ns_;
        status = static_cast<Status>(is_busy ? unreachable_ : connect_);
        return is_busy;
    }
    bool wait_connected(std::uint64_t until_ns) { return pass(until_ns, connected_ns_); }

    void expect(std::uint64_t) { world_->expects++; }
    shmserve::Result<void> reset(std::uint64_t)
    {
        world_->resets++;
        return {};
    }

  private:
    bool pass(std::uint64_t until_ns, std::uint64_t end_ns)
    {
        world_->now_ns = std::max(world_->now_ns, std::min(until_ns, end_ns));
        return world_->now_ns >= end_ns;
    }

    World *world_;
    std::uint64_t ready_ns_ = 0, connected_ns_ = 0;
    int connect_ = 0, unreachable_ = 0;
    shmserve::ChunkReply<float> reply_;
    std::vector<float> rows_;
};

using Chunks = shmserve::BasicActionChunks<float, ScriptedPort>;

/* The most rows of a chunk in a script. */
constexpr std::uint32_t most_rows = 20;

/* As `own` in chunk_script.py. */
void own(shmserve::span<const float> previous, shmserve::span<const float> next, shmserve::span<float> row)
{
    bool fails = static_cast<int>(next[0]) % 7 == 6;
    for (std::size_t index = 0; index < row.size(); index++)
        row[index] = fails ? NAN : (previous[index] * 3 + next[index]) / 4;
}

const char *const sources[] = {"chunk", "overrun", "hold", "repeat_last", "zero"};

void begin(std::istringstream &words, World &world, std::unique_ptr<Chunks> &chunks)
{
    shmserve::ChunkOptions options;
    std::string fallback, aggregate;
    std::int64_t prefetch, max_age_ns;
    world = World{};
    words >> world.now_ns >> options.steps >> prefetch >> options.overrun_steps >> options.period_ns >>
        options.max_wait_ns >> fallback >> max_age_ns >> world.connected >> aggregate;
    if (prefetch >= 0)
        options.prefetch = static_cast<std::uint32_t>(prefetch);
    options.aggregate = aggregate == "latest"             ? shmserve::Aggregate::latest
                        : aggregate == "weighted_average" ? shmserve::Aggregate::weighted_average
                                                          : shmserve::Aggregate::own;
    shmserve::RowFunction<float> function;
    if (options.aggregate == shmserve::Aggregate::own)
        function = own;
    options.chunk_rows = most_rows;
    options.width = 2;
    options.fallback = fallback == "hold"          ? shmserve::Fallback::hold
                       : fallback == "repeat_last" ? shmserve::Fallback::repeat_last
                       : fallback == "zero"        ? shmserve::Fallback::zero
                                                   : shmserve::Fallback::raise;
    if (max_age_ns >= 0)
        options.max_age_ns = static_cast<std::uint64_t>(max_age_ns);
    const char *fault = shmserve::detail::fault_of(options, function != nullptr);
    chunks = fault == nullptr ? std::make_unique<Chunks>(ScriptedPort(world), options, function) : nullptr;
    std::printf("%s\n", fault == nullptr ? "new" : "refused");
}

void step(std::istringstream &words, World &world, Chunks &chunks)
{
    std::uint64_t now_ns;
    shmserve::StepOptions terms;
    words >> now_ns >> terms.capture_ns;
    world.now_ns = std::max(world.now_ns, now_ns);
    auto given = chunks.step([](ScriptedPort &) {}, terms);
    if (!given) {
        std::printf("status %d\n", static_cast<int>(given.status()));
        return;
    }
    std::printf("%s %d %g %g %" PRIu64 " %" PRIu64 " %" PRId64 " %" PRId64 " %d\n",
                sources[static_cast<int>(given->source)], given->fresh, static_cast<double>(given->action[0]),
                static_cast<double>(given->action[1]), given->version, given->chunk, given->index, given->age_ns,
                static_cast<int>(given->error));
}

} // namespace

int main()
{
    World world;
    std::unique_ptr<Chunks> chunks;
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        std::string command;
        words >> command;
        if (command == "new")
            begin(words, world, chunks);
        else if (chunks == nullptr)
            continue;
        else if (command == "next")
            words >> world.latency_ns >> world.reply >> world.version >> world.rows >> world.submit;
        else if (command == "connect")
            words >> world.connect_ns >> world.connect >> world.unreachable;
        else if (command == "reset")
            std::printf("reset %d\n", static_cast<int>(chunks->reset(0).status()));
        else if (command == "step")
            step(words, world, *chunks);
        else if (command == "stats") {
            const shmserve::ChunkStats &counts = chunks->stats();
            for (std::uint64_t count : {counts.fresh, counts.overrun, counts.fallback, counts.raised, counts.skipped,
                                        counts.chunks, counts.late_chunks, counts.version_changes, counts.errors,
                                        world.requests, world.expects, world.cancels, world.resets, world.connects,
                                        world.left_over, world.delays})
                std::printf("%" PRIu64 " ", count);
            std::printf("%" PRIu64 " %" PRIu32 "\n", world.now_ns, chunks->lead());
        }
        else
            return 2;
    }
    return 0;
}
