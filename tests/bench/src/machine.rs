use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::{
        resource::{UsageWho, getrusage},
        statvfs::statvfs,
        time::{TimeVal, TimeValLike},
    },
    unistd::{Pid, SysconfVar, sysconf},
};

/// Where what is measured has the first core to itself and the loader the second.
pub const SERVER: [usize; 1] = [0];
pub const LOADER: [usize; 1] = [1];
pub const BOTH: [usize; 2] = [0, 1];

/// The cores of this machine, as far as this process may use them.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Holds the calling thread to some cores.
///
/// # Errors
/// When there is no such core.
pub fn pin_thread(cores: &[usize]) -> Result<()> {
    set_affinity(Pid::from_raw(0), cores)
}

/// Holds a process with all its threads and children to some cores; those it starts later follow.
///
/// # Errors
/// When it is gone.
pub fn pin_process(pid: u32, cores: &[usize]) -> Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task: i32 = task?.file_name().to_string_lossy().parse()?;
        // A thread may end meanwhile, and so may a child.
        let _ = set_affinity(Pid::from_raw(task), cores);
    }
    for child in children(pid) {
        let _ = pin_process(child, cores);
    }
    Ok(())
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|child| child.parse().ok()).collect()
}

fn set_affinity(task: Pid, cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core)?;
    }
    sched_setaffinity(task, &set).with_context(|| format!("no core {cores:?}"))
}

/// CPU time, user and system, that a process and its children have used, those included that have ended. A process that is
/// gone counts as nothing.
pub fn cpu_of(pid: u32) -> Duration {
    let ended = |fields: &Option<Vec<u64>>| fields.as_ref().map(|fields| [fields[13], fields[14]]);
    loop {
        let own = stat(pid);
        let below: Duration = children(pid).into_iter().map(cpu_of).sum();
        // A child that ended in between is in neither.
        if ended(&stat(pid)) == ended(&own) {
            return ticks(own.map_or(0, |fields| fields[11..15].iter().sum())) + below;
        }
    }
}

/// CPU time, user and system, that the calling thread has used.
///
/// # Errors
/// When the kernel does not tell.
pub fn cpu_of_thread() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros = |time: TimeVal| Duration::from_micros(time.num_microseconds().unsigned_abs());
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

/// Fields from the third on, as numbers where they are.
fn stat(pid: u32) -> Option<Vec<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_ascii_whitespace().map(|field| field.parse().unwrap_or(0)).collect())
}

fn ticks(count: u64) -> Duration {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    Duration::from_secs_f64(count as f64 / per_second as f64)
}

/// Refuses what the disk of temporary files, where installations are made, has no room for.
///
/// # Errors
/// When fewer than `bytes` are free.
pub fn require_room(bytes: u64) -> Result<()> {
    let folder = std::env::temp_dir();
    let disk = statvfs(&folder)?;
    let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    let [wanted, free] = [bytes.div_ceil(1 << 30), free >> 30];
    ensure!(wanted <= free, "wants {wanted} GB free in {}, where {free} GB are; TMPDIR names another folder", folder.display());
    Ok(())
}

/// What ran on the machine while something was measured: time of all cores that were not idle.
#[derive(Debug, Clone, Copy)]
pub struct Busy(u64);

impl Busy {
    /// Ticks of all cores that were not idle so far.
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<u64> =
            text.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
        // user, nice, system, irq, softirq, steal; not idle and iowait.
        Self([0, 1, 2, 5, 6, 7].iter().filter_map(|index| fields.get(*index)).sum())
    }

    pub fn elapsed(self) -> Duration {
        ticks(Self::now().0.saturating_sub(self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_busy_process_is_seen_to_work() {
        let (before, began) = (cpu_of(std::process::id()), Instant::now());
        while began.elapsed() < Duration::from_millis(300) {
            std::hint::black_box(cores());
        }
        let used = cpu_of(std::process::id()) - before;
        assert!(used > Duration::from_millis(100), "{used:?}");
    }
}
