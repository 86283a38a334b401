//! Threads for work that takes microseconds. They stay awake while they wait for it.
//!
//! A product of one token takes as long as waking a thread, and there are hundreds of them. So these threads look for
//! work for a while before they sleep. Two rules keep this from slowing the program down when other programs need the
//! cores too. First, the caller does every piece that no other thread has begun, and waits only for threads that have
//! begun one, so that a thread which the system has suspended delays nothing. Second, a caller that waits sleeps after
//! a while, which frees a core for the thread that it waits for.

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::Thread,
    time::{Duration, Instant},
};

/// How long a thread looks out for work: longer than what lies between the products of a token.
const LOOK_OUT: Duration = Duration::from_micros(300);
/// How long a caller looks out for the others to finish: longer than a piece of work.
const FINISH: Duration = Duration::from_micros(50);
/// Pieces for each thread: few enough to cost nothing, enough for a thread that was late to have its part done by others.
const PIECES: usize = 8;

/// Whether work is open to the threads; above it stands the work's number, below how many threads are at it.
const OPEN: u64 = 1 << 31;
const NUMBER: u64 = 1 << 32;

/// How many threads a state says are at work.
fn at_work(state: u64) -> u64 {
    state & (OPEN - 1)
}

/// The work at hand, which lives on the caller's stack.
#[derive(Clone, Copy)]
struct Work {
    run: unsafe fn(*const ()),
    data: *const (),
}

struct Pool {
    /// Number, `OPEN`, and the threads at work.
    state: AtomicU64,
    /// Read by threads that are counted in `state`; written while it is not open and none is.
    work: UnsafeCell<Work>,
    /// Taken by the caller whose work it is.
    caller: Mutex<()>,
    /// The caller, while it sleeps until the others have finished.
    waiting: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    workers: Vec<Worker>,
}

struct Worker {
    thread: Thread,
    asleep: &'static AtomicBool,
}

// SAFETY: `work` is written by the one caller while no thread is counted in `state`, and read by those that are; `state`
// orders the two. What it points to is shared by threads, which `Sync` of the closure allows.
unsafe impl Sync for Pool {}
// SAFETY: as above.
unsafe impl Send for Pool {}

thread_local! {
    /// Whether this thread is one of the pool, or its caller at work: work inside of work runs where it is.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// How many threads there are, the caller among them: `CANDLE_NUM_THREADS`, else as many as Candle's other pools have.
pub(crate) fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| {
        let asked = std::env::var("CANDLE_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
        asked.unwrap_or_else(candle_core::utils::get_num_threads)
    })
}

/// Runs `work` on pieces of `0..items`, each handed out once.
pub(crate) fn chunked(items: usize, work: impl Fn(Range<usize>) + Sync) {
    let (piece, next) = (items.div_ceil(threads() * PIECES).max(1), AtomicUsize::new(0));
    on_waiting_threads(items.div_ceil(piece), || {
        loop {
            let start = next.fetch_add(piece, Ordering::Relaxed);
            if start >= items {
                return;
            }
            work(start..items.min(start + piece));
        }
    });
}

/// Runs `worker` here, and on the others at the same time unless they are busy; it returns when there is nothing left to
/// do, of which there are at most `most` pieces.
pub(crate) fn on_waiting_threads(most: usize, worker: impl Fn() + Sync) {
    static POOL: OnceLock<&'static Pool> = OnceLock::new();
    if most <= 1 || threads() <= 1 || BUSY.get() {
        return worker();
    }
    POOL.get_or_init(|| Pool::start(threads() - 1)).run(&worker);
}

impl Pool {
    fn start(workers: usize) -> &'static Self {
        // The threads begin with the pool, which stays as long as the program: both are leaked on purpose.
        let slot: &'static OnceLock<Self> = Box::leak(Box::default());
        let workers = (0..workers).filter_map(|i| {
            let asleep: &'static AtomicBool = Box::leak(Box::default());
            let thread = std::thread::Builder::new().name(format!("attn-waiting-{i}"));
            let handle = thread.spawn(move || slot.wait().serve(asleep)).ok()?;
            Some(Worker { thread: handle.thread().clone(), asleep })
        });
        let workers = workers.collect();
        slot.get_or_init(|| Self {
            state: AtomicU64::new(0),
            work: UnsafeCell::new(Work { run: |_| {}, data: std::ptr::null() }),
            caller: Mutex::new(()),
            waiting: Mutex::new(None),
            panic: Mutex::new(None),
            workers,
        })
    }

    /// Runs `worker` on this thread and on the others, or only on this one if the others work for another caller.
    fn run<F: Fn() + Sync>(&self, worker: &F) {
        unsafe fn call<F: Fn()>(data: *const ()) {
            // SAFETY: `data` is the closure that `run` has borrowed until all threads have left it.
            unsafe { (*data.cast::<F>())() }
        }
        let _caller = match self.caller.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(e)) => e.into_inner(),
            Err(TryLockError::WouldBlock) => return worker(),
        };
        // SAFETY: the lock is held, and the last caller has left nothing open, and no thread is at work.
        unsafe { *self.work.get() = Work { run: call::<F>, data: std::ptr::from_ref(worker).cast() } };
        let number = self.state.load(Ordering::Relaxed) / NUMBER * NUMBER;
        self.state.store(number.wrapping_add(NUMBER) | OPEN, Ordering::SeqCst);
        for worker in &self.workers {
            if worker.asleep.load(Ordering::SeqCst) {
                worker.thread.unpark();
            }
        }
        BUSY.set(true);
        // Whatever the closure does, no thread uses it any more when this function is left.
        let result = catch_unwind(AssertUnwindSafe(worker));
        BUSY.set(false);
        self.close();
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = result.err().or(panic) {
            resume_unwind(panic);
        }
    }

    /// Lets no more threads in and waits for those that are.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::SeqCst) & !OPEN;
        let start = Instant::now();
        while at_work(state) > 0 {
            if start.elapsed() < FINISH {
                std::hint::spin_loop();
            } else {
                *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
                // Whoever leaves after this looks for a sleeping caller.
                if at_work(self.state.load(Ordering::SeqCst)) > 0 {
                    std::thread::park();
                }
            }
            state = self.state.load(Ordering::SeqCst);
        }
    }

    /// What a thread does: look out for work, join it, leave it.
    fn serve(&self, asleep: &AtomicBool) {
        BUSY.set(true);
        let mut done = 0;
        loop {
            let state = self.look_out(done, asleep);
            let joined = self.state.compare_exchange(state, state + 1, Ordering::SeqCst, Ordering::Relaxed);
            if joined.is_err() {
                continue;
            }
            done = state / NUMBER;
            // SAFETY: this thread is counted, so the work stays as it is until it has left.
            let work = unsafe { *self.work.get() };
            // SAFETY: as above; the closure is borrowed until this thread has left.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| unsafe { (work.run)(work.data) })) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
            }
            let left = self.state.fetch_sub(1, Ordering::SeqCst) - 1;
            if left & OPEN == 0
                && at_work(left) == 0
                && let Some(caller) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                caller.unpark();
            }
        }
    }

    /// The state, once it says that other work than number `done` is open.
    fn look_out(&self, done: u64, asleep: &AtomicBool) -> u64 {
        let open = |state: u64| state & OPEN != 0 && state / NUMBER != done;
        loop {
            let start = Instant::now();
            while start.elapsed() < LOOK_OUT {
                for _ in 0..16 {
                    let state = self.state.load(Ordering::SeqCst);
                    if open(state) {
                        return state;
                    }
                    std::hint::spin_loop();
                }
            }
            asleep.store(true, Ordering::SeqCst);
            // A caller that opened work before this doesn't know that somebody sleeps.
            if !open(self.state.load(Ordering::SeqCst)) {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of calls of every item, from several callers at once.
    #[test]
    fn every_item_is_worked_on_once() {
        let callers: Vec<_> = (0..3)
            .map(|caller| {
                std::thread::spawn(move || {
                    for round in 0..300 {
                        let items = (round * 7 + caller) % 50;
                        let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                        chunked(items, |range| {
                            for count in &counts[range] {
                                count.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                        if round % 100 == 0 {
                            std::thread::sleep(2 * LOOK_OUT);
                        }
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.join().expect("a caller without a panic");
        }
    }

    #[test]
    fn work_inside_of_work_and_panics_come_back() {
        let sum = AtomicUsize::new(0);
        chunked(20, |outer| {
            chunked(3, |inner| {
                sum.fetch_add(outer.len() * inner.len(), Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 60);
        let pool = Pool::start(2);
        for _ in 0..20 {
            let late = AtomicUsize::new(0);
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|| {
                    std::thread::sleep(Duration::from_millis(1));
                    assert!(late.fetch_add(1, Ordering::Relaxed) > 0, "the first one fails");
                });
            }));
            assert!(caught.is_err());
        }
        let ran = AtomicUsize::new(0);
        pool.run(&|| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert!((1..=3).contains(&ran.into_inner()));
    }
}
