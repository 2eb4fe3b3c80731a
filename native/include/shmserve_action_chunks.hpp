/** @file
 * ActionChunks: one action for each control step from the action chunks of a service, with a fallback.
 *
 *     shmserve::ChunkOptions options;
 *     options.steps = 30;
 *     options.period_ns = 1'000'000;
 *     options.prefetch = 10;                          // a request each steps - prefetch periods: 20 ms
 *     options.width = 6;
 *     options.fallback = shmserve::Fallback::zero;
 *     auto chunks = shmserve::ActionChunks<float>::make(std::move(client), schema, options).value();
 *     while (running) {
 *         auto step = chunks.step([&](shmserve::Loan &loan) { return loan.copy("joints", joints, 6); });   // [R]
 *         if (step)
 *             apply(step->action);
 *         else
 *             stop();
 *         sleep_until_the_next_millisecond();
 *     }
 *
 * A step asks without waiting, and looks for the reply in later steps; it waits only for `max_wait_ns`. One request is
 * in flight at a time. A thread of its own, which sleeps otherwise, connects again when the service went away, so no
 * step waits for that.
 */

#ifndef SHMSERVE_ACTION_CHUNKS_HPP
#define SHMSERVE_ACTION_CHUNKS_HPP

#include <shmserve.hpp>
#include <shmserve_chunk_rules.hpp>

#include <atomic>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <time.h>

namespace shmserve {
namespace detail {

inline void pause_ns(std::uint64_t ns) noexcept
{
    timespec pause{static_cast<time_t>(ns / 1'000'000'000), static_cast<long>(ns % 1'000'000'000)};
    (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, nullptr);
}

/** Thread that makes a client usable again. From `begin` until it has ended, the client is this thread's alone. */
class Connector {
  public:
    /** [S] Starts the thread, with ordinary priority and without signals. */
    explicit Connector(shmserve_client *client) noexcept : client_(client)
    {
        (void)sem_init(&wanted_, 0, 0);
        pthread_attr_t attributes;
        sigset_t all, before;
        sched_param priority{};
        (void)pthread_attr_init(&attributes);
        (void)pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
        (void)pthread_attr_setschedpolicy(&attributes, SCHED_OTHER);
        (void)pthread_attr_setschedparam(&attributes, &priority);
        (void)pthread_attr_setstacksize(&attributes, stack_bytes);
        (void)sigfillset(&all);
        (void)pthread_sigmask(SIG_SETMASK, &all, &before);
        started_ = pthread_create(&thread_, &attributes, run, this) == 0;
        (void)pthread_sigmask(SIG_SETMASK, &before, nullptr);
        (void)pthread_attr_destroy(&attributes);
    }
    Connector(const Connector &) = delete;
    Connector &operator=(const Connector &) = delete;
    /** [S] An attempt in progress ends by its timeout. */
    ~Connector()
    {
        stopped_.store(true);
        (void)sem_post(&wanted_);
        if (started_)
            (void)pthread_join(thread_, nullptr);
        (void)sem_destroy(&wanted_);
    }

    bool started() const noexcept { return started_; }

    /** [R] Begin, after a pause; one wake-up. */
    void begin(std::uint64_t delay_ns) noexcept
    {
        delay_ns_ = delay_ns;
        status_ = SHMSERVE_OK;
        is_busy_.store(true, std::memory_order_relaxed);
        (void)sem_post(&wanted_);
    }

    /** [R] Whether it goes on; how the attempts have ended, or how the latest failed. */
    bool is_busy(Status &status) const noexcept
    {
        /* ORDER: busy before the client and the status are used; pairs with the store in `connect`. */
        bool busy = is_busy_.load(std::memory_order_acquire);
        status = static_cast<Status>(status_.load(std::memory_order_relaxed));
        return busy;
    }

    static constexpr std::uint64_t attempt_ns = 500'000'000;

  private:
    static constexpr std::uint64_t retry_ns = 20'000'000;
    static constexpr std::size_t stack_bytes = 512 * 1024;

    static void *run(void *self) noexcept
    {
        static_cast<Connector *>(self)->serve();
        return nullptr;
    }

    void serve() noexcept
    {
        while (!stopped_.load()) {
            while (sem_wait(&wanted_) != 0)
                ;
            if (!stopped_.load())
                connect();
        }
    }

    void connect() noexcept
    {
        pause_ns(delay_ns_);
        while (!stopped_.load()) {
            int status = shmserve_recover(client_, attempt_ns);
            bool is_attached =
                status == SHMSERVE_OK || status == SHMSERVE_MISMATCH; /* a loan returns the latter again */
            status_.store(is_attached ? SHMSERVE_OK : status, std::memory_order_relaxed);
            if (is_attached || !(is_away(static_cast<Status>(status)) || status == SHMSERVE_TIMEOUT))
                break;
            pause_ns(retry_ns);
        }
        is_busy_.store(false, std::memory_order_release);
    }

    shmserve_client *client_;
    sem_t wanted_;
    pthread_t thread_{};
    bool started_ = false;
    std::uint64_t delay_ns_ = 0;
    std::atomic<bool> stopped_{false}, is_busy_{false};
    std::atomic<int> status_{SHMSERVE_OK};
};

/** A real service, for BasicActionChunks. */
template <class T> class ServicePort {
  public:
    ServicePort(Client client, Schema schema, const ChunkOptions &options)
        : client_(std::move(client)), schema_(schema), actions_(options.actions), width_(options.width),
          connector_(std::make_unique<Connector>(client_.raw()))
    {
        /* What it finds is found again by the first request. */
        (void)shmserve_state_period(client_.raw(), options.period_ns, Connector::attempt_ns);
        if (options.real_time_chunking)
            find_left_over();
    }

    bool takes_left_over() const noexcept { return !sizes_.empty(); }

    bool started() const noexcept { return connector_->started(); }
    std::uint64_t now_ns() const noexcept { return shmserve::now_ns(); }
    bool is_connected() noexcept { return client_.alive().has_value(); }
    const char *text() const noexcept { return shmserve_last_error(client_.raw()); }

    template <class Observe>
    Result<void> submit(Observe &observe, span<const std::uint64_t> sizes, std::uint64_t capture_ns,
                        std::uint64_t useful_ns, const Continuation<T> &rest) noexcept
    {
        if (takes_left_over()) {
            span<const std::uint64_t> given = sizes.size() == sizes_.size() ? sizes : declared_sizes_;
            std::copy(given.begin(), given.end(), sizes_.begin());
            sizes_[left_over_] = rest.count;
            sizes = sizes_;
        }
        auto loan = sizes.empty() ? client_.loan(schema_) : client_.loan(schema_, sizes);
        if (!loan)
            return loan.error();
        if constexpr (std::is_void_v<decltype(observe(*loan))>)
            observe(*loan);
        else if (Result<void> filled = observe(*loan); !filled)
            return filled;
        shmserve_terms terms{};
        if (takes_left_over()) {
            Result<void> filled = loan->set("inference_delay", rest.delay);
            if (filled)
                filled = loan->copy("prev_chunk_left_over", rest.rows, static_cast<std::size_t>(rest.count) * width_);
            if (!filled)
                return filled;
            terms.real_time_chunking = 1;
        }
        if (useful_ns != 0) {
            terms.capture_ns = capture_ns;
            terms.max_age_ns = useful_ns;
            terms.deadline_ns = now_ns() + useful_ns;
        }
        auto pending = loan->publish(terms);
        if (!pending)
            return pending.error();
        pending_.emplace(std::move(*pending));
        return {};
    }

    bool look(ChunkReply<T> &reply) noexcept
    {
        if (!found_)
            found_.emplace(pending_->wait(0));
        reply.status = found_->status();
        if (reply.status == Status::ok)
            read(reply);
        else
            reply.text = found_->error().text;
        if (reply.status == Status::timeout || reply.status == Status::resize_required)
            found_.reset();
        return reply.status != Status::timeout;
    }

    void release() noexcept
    {
        found_.reset();
        pending_.reset();
    }

    void cancel() noexcept { (void)pending_->cancel(); }

    bool wait(std::uint64_t until_ns) noexcept
    {
        if (now_ns() >= until_ns)
            return false;
        found_.emplace(pending_->wait(until_ns));
        if (found_->status() != Status::timeout)
            return true;
        found_.reset();
        return false;
    }

    void connect(std::uint64_t delay_ns) noexcept { connector_->begin(delay_ns); }
    bool is_connecting(Status &status) const noexcept { return connector_->is_busy(status); }
    bool wait_connected(std::uint64_t until_ns) const noexcept
    {
        Status status;
        while (connector_->is_busy(status)) {
            std::uint64_t begun_ns = now_ns();
            if (begun_ns >= until_ns)
                return false;
            pause_ns(until_ns - begun_ns < poll_ns ? until_ns - begun_ns : poll_ns);
        }
        return true;
    }

    void expect(std::uint64_t within_ns) noexcept { (void)client_.expect(within_ns); }
    Result<void> reset(std::uint64_t deadline_ns) noexcept { return client_.reset(deadline_ns); }
    /** Of the client; not while it is connecting. */
    shmserve_stats stats() const noexcept { return client_.stats(); }

  private:
    static constexpr std::uint64_t poll_ns = 1'000'000;

    /** Note the declared sizes, and where among them the number of rows left over is. */
    void find_left_over()
    {
        int delay = shmserve_find(schema_.get(), "inference_delay");
        int rows = shmserve_find(schema_.get(), "prev_chunk_left_over");
        if (delay < 0 || rows < 0 || schema_.entries()[static_cast<std::size_t>(rows)].dims != 2)
            return;
        for (const shmserve_entry &entry : schema_.entries()) {
            if (&entry == &schema_.entries()[static_cast<std::size_t>(rows)])
                left_over_ = sizes_.size();
            sizes_.insert(sizes_.end(), entry.shape, entry.shape + entry.dims);
        }
        declared_sizes_ = sizes_;
    }

    void read(ChunkReply<T> &reply) noexcept
    {
        auto items = (*found_)->span_of(actions_);
        int index = items ? shmserve_find((*found_)->info().schema, actions_.path()) : -1;
        const shmserve_entry *entries = nullptr;
        if (index >= 0)
            (void)shmserve_entries((*found_)->info().schema, &entries);
        if (!items)
            reply.text = items.error().text;
        else if (entries[index].dims == 0 || items->size() % width_ != 0 ||
                 items->size() / width_ != (*found_)->info().views[index].shape[0])
            reply.text = "the rows of the chunk have not `width` values each";
        else {
            reply.rows = items->data();
            reply.count = items->size() / width_;
            reply.version = (*found_)->info().model_version;
            return;
        }
        reply.status = Status::mismatch;
    }

    Client client_;
    Schema schema_;
    Field<T> actions_;
    std::uint32_t width_;
    std::optional<Pending> pending_;
    std::optional<Result<Reply>> found_; /**< how the request in flight has ended */
    std::vector<std::uint64_t> sizes_,
        declared_sizes_; /**< of the observation, if it has the entries of real-time chunking; else empty */
    std::size_t left_over_ = 0;
    /** Last, so that its thread has ended before the client is closed. */
    std::unique_ptr<Connector> connector_;
};

} // namespace detail

/** Takes one action a step from chunks of T, and requests the next chunk in time; see ChunkOptions and
 * BasicActionChunks. For one thread. The client and its schema are its own from then on. */
template <class T> class ActionChunks : public BasicActionChunks<T, detail::ServicePort<T>> {
  public:
    /** [S] argument: the options make no sense; memory: no thread. The client may not be attached yet
     * (Client::open_later). `function`: for Aggregate::own. */
    static Result<ActionChunks> make(Client client, Schema schema, const ChunkOptions &options,
                                     RowFunction<T> function = nullptr)
    {
        if (const char *fault = detail::fault_of(options, function != nullptr))
            return Error{Status::argument, fault};
        detail::ServicePort<T> port(std::move(client), schema, options);
        if (options.real_time_chunking && !port.takes_left_over())
            return Error{Status::argument,
                         "real_time_chunking needs the entries inference_delay and prev_chunk_left_over "
                         "in the structure"};
        if (!port.started())
            return Error{Status::memory, "the system starts no further thread: raise the limit (ulimit -u, TasksMax=)"};
        return ActionChunks(std::move(port), options, std::move(function));
    }

  private:
    using BasicActionChunks<T, detail::ServicePort<T>>::BasicActionChunks;
};

} // namespace shmserve

#endif
