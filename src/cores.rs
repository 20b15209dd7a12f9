//! A core of its own for each thread that works on requests.
//!
//! Left alone, a kernel may put all of them on one core and leave another idle: whoever is woken by a packet on loopback or by
//! a flush comes to where it was woken from, and on a virtual machine an idle core is easily taken for one that is gone. A
//! sale on two cores sold a tenth less for it.
//!
//! It must never keep any other thread from any core.

#[cfg(target_os = "linux")]
mod linux {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    use tokio::runtime::Builder;

    /// When there are as many threads as cores. With fewer, the kernel knows better which cores have nothing else to do.
    pub fn spread(runtime: &mut Builder, threads: usize) {
        let Ok(all) = sched_getaffinity(None) else { return };
        let cores: Vec<CpuSet> = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).map(only).collect();
        if cores.len() != threads {
            return;
        }
        thread_local!(static IS_PLACED: Cell<bool> = const { Cell::new(false) });
        let placed = AtomicUsize::new(0);
        // A thread begins where the one may be that started it; those that wait for the disk are to be anywhere.
        runtime.on_thread_start(move || stay_on(&all));
        // Only those that work on requests are ever parked.
        runtime.on_thread_park(move || {
            if !IS_PLACED.replace(true) {
                stay_on(&cores[placed.fetch_add(1, Ordering::Relaxed) % cores.len()]);
            }
        });
    }

    fn only(core: usize) -> CpuSet {
        let mut set = CpuSet::new();
        set.set(core);
        set
    }

    fn stay_on(cores: &CpuSet) {
        // The cores may have been taken from the process meanwhile; it runs on those that it was left.
        if let Err(error) = sched_setaffinity(None, cores) {
            tracing::debug!(%error, "a thread is not bound to a core");
        }
    }

    #[cfg(test)]
    mod tests {
        use std::collections::BTreeSet;
        use std::time::{Duration, Instant};

        use super::*;

        fn cores_of_this_thread() -> Vec<usize> {
            let set = sched_getaffinity(None).unwrap();
            (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
        }

        /// The cores of each thread that works on requests, once they all have parked, and those of one that waits for a disk.
        fn run(threads: usize) -> (BTreeSet<Vec<usize>>, Vec<usize>) {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads);
            spread(&mut builder, threads);
            let runtime = builder.enable_all().build().unwrap();
            let deadline = Instant::now() + Duration::from_secs(20);
            let mut seen = BTreeSet::new();
            runtime.block_on(async {
                while seen.len() < threads && Instant::now() < deadline {
                    let tasks: Vec<_> = (0..4 * threads).map(|_| tokio::spawn(async { cores_of_this_thread() })).collect();
                    for task in tasks {
                        let cores = task.await.unwrap();
                        // Before it has parked for the first time it may be anywhere.
                        if cores.len() == 1 || threads == 1 {
                            seen.insert(cores);
                        }
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let waits = tokio::spawn(async { tokio::task::spawn_blocking(cores_of_this_thread).await.unwrap() });
                (seen, waits.await.unwrap())
            })
        }

        #[test]
        fn each_thread_has_a_core_when_there_are_as_many_and_others_have_all() {
            let all = cores_of_this_thread();
            let (seen, waits) = run(all.len());
            assert_eq!(seen, all.iter().map(|core| vec![*core]).collect());
            assert_eq!(waits, all);
            if all.len() > 1 {
                let (seen, waits) = run(1);
                assert_eq!((seen, waits), (BTreeSet::from([all.clone()]), all));
            }
        }
    }
}

#[cfg(target_os = "linux")]
pub use linux::spread;

/// Elsewhere threads cannot be bound to cores.
#[cfg(not(target_os = "linux"))]
pub fn spread(_runtime: &mut tokio::runtime::Builder, _threads: usize) {}
