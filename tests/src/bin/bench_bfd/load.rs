//! Full load on the processors, and a witness of what the machine itself did to a real-time thread meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use thread_priority::{
    RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue, ThreadSchedulePolicy,
    set_thread_priority_and_policy, thread_native_id,
};

use crate::Failure;

/// The witness sleeps this long at a time.
const NAP: Duration = Duration::from_millis(5);
/// An interval in which it woke later than this is the machine's fault.
const LATE: Duration = Duration::from_millis(50);
/// Above the unit's priority: what delays the witness delays everybody.
const PRIORITY: u8 = 60;

/// Time since the epoch, as captures have it.
pub(crate) fn epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// From when to when a real-time thread was not run.
pub(crate) type Interval = (Duration, Duration);

/// Busy loops and the witness, until [`Load::end`].
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    loops: Vec<JoinHandle<()>>,
    witness: JoinHandle<Vec<Interval>>,
}

impl Load {
    pub(crate) fn start(loops: usize) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let busy = |stop: Arc<AtomicBool>| {
            move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        };
        let loops = (0..loops).map(|_| std::thread::spawn(busy(Arc::clone(&stop)))).collect();
        let (ready, told) = std::sync::mpsc::channel();
        let end = Arc::clone(&stop);
        let witness = std::thread::spawn(move || {
            drop(ready.send(real_time()));
            watch(&end)
        });
        told.recv()??;
        Ok(Self { stop, loops, witness })
    }

    /// Ends everything; the intervals in which nothing could have been in time.
    pub(crate) fn end(self) -> Result<Vec<Interval>, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        for busy in self.loops {
            busy.join().map_err(|_| "a busy loop panicked")?;
        }
        Ok(self.witness.join().map_err(|_| "the witness panicked")?)
    }
}

fn real_time() -> Result<(), String> {
    let priority = ThreadPriority::Crossplatform(ThreadPriorityValue::try_from(PRIORITY)?);
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    set_thread_priority_and_policy(thread_native_id(), priority, policy)
        .map_err(|error| format!("the witness may not run in the real-time class: {error:?}; run as root"))
}

fn watch(stop: &AtomicBool) -> Vec<Interval> {
    let mut late = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let slept = Instant::now();
        std::thread::sleep(NAP);
        let over = slept.elapsed().saturating_sub(NAP);
        if over > LATE {
            let now = epoch();
            late.push((now.saturating_sub(over), now));
        }
    }
    late
}
