//! What the kernel says about data that is not on a disk yet: the counters `Dirty` and `Writeback` of
//! proc_meminfo(5), for the whole host.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const EVERY: Duration = Duration::from_millis(10);

/// Bytes of dirty pages, and of pages that are being written.
pub(super) fn now() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (counter(&text, "Dirty:"), counter(&text, "Writeback:"))
}

fn counter(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

/// Watches the highest `Writeback` until it is asked for it.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to watch.
    pub(super) fn start() -> Self {
        let (stop, peak) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (ends, highest) = (Arc::clone(&stop), Arc::clone(&peak));
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                highest.fetch_max(now().1, Ordering::Relaxed);
                std::thread::sleep(EVERY);
            }
        });
        Self {
            stop,
            peak,
            thread: Some(thread),
        }
    }

    /// The highest value, in bytes.
    pub(super) fn peak(mut self) -> u64 {
        self.end();
        self.peak.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_in_bytes() {
        let text = "MemFree:  9 kB\nDirty:             1234 kB\nWriteback:            0 kB\n";
        assert_eq!(counter(text, "Dirty:"), 1234 << 10);
        assert_eq!(counter(text, "Writeback:"), 0);
        assert_eq!(counter(text, "Nothing:"), 0);
    }
}
