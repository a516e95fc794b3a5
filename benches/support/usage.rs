//! What processes and the machine use, as the kernel counts it.

use std::collections::{HashMap, HashSet};
use std::fs;

/// `USER_HZ`, fixed on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU-seconds spent so far.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    /// By a process and all that descend from it, its dead children included.
    pub(crate) process: f64,
    /// By the whole machine.
    pub(crate) machine: f64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Self {
        Self { process: tree_seconds(&[pid]), machine: machine_seconds() }
    }

    pub(crate) fn of_all(pids: &[u32]) -> Self {
        Self { process: tree_seconds(pids), machine: machine_seconds() }
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self { process: self.process - earlier.process, machine: self.machine - earlier.machine }
    }
}

/// Busy CPU-seconds of the machine: user, nice, system, irq and softirq; not idle (3), iowait (4) nor steal.
pub(crate) fn machine_seconds() -> f64 {
    let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = machine.lines().next().unwrap_or_default().split_whitespace().skip(1).enumerate();
    let busy = fields.filter(|(at, _)| matches!(at, 0..=2 | 5 | 6));
    busy.filter_map(|(_, field)| field.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

/// CPU-seconds of one process (its threads, not its children).
pub(crate) fn process_seconds(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |fields| seconds(&fields))
}

fn tree_seconds(roots: &[u32]) -> f64 {
    tree(roots).into_iter().map(process_seconds).sum()
}

/// utime and stime, fields 14 and 15: 11 and 12 behind the name.
fn seconds(fields: &[String]) -> f64 {
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

/// The fields behind the name, which may hold spaces.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit(')').next()?.split_whitespace().map(str::to_owned).collect())
}

/// The processes given and all that descend from them.
pub(crate) fn tree(roots: &[u32]) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut seen, mut waiting) = (Vec::new(), HashSet::new(), roots.to_vec());
    while let Some(pid) = waiting.pop() {
        if seen.insert(pid) {
            found.push(pid);
            waiting.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

/// Anonymous resident memory of one process in bytes.
pub(crate) fn rss_anon(pid: u32) -> u64 {
    status(pid, "RssAnon:")
}

/// Anonymous resident memory of a process tree in bytes.
pub(crate) fn tree_rss_anon(roots: &[u32]) -> u64 {
    tree(roots).into_iter().map(rss_anon).sum()
}

/// The highest resident memory of a process tree since [`forget_peak`], in bytes. Pages that processes share are
/// counted in each.
pub(crate) fn tree_peak(roots: &[u32]) -> u64 {
    tree(roots).into_iter().map(|pid| status(pid, "VmHWM:")).sum()
}

/// Begins to measure the highest resident memory anew.
pub(crate) fn forget_peak(roots: &[u32]) {
    for pid in tree(roots) {
        // A process that has just ended has no peak to forget.
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
    }
}

fn status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}
