//! A disk that reads slowly: a cgroup (version 1) whose members get so many bytes per second from it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use crate::children::Ground;
use crate::support::pages::forget_pages;

const CONTROLLER: &str = "/sys/fs/cgroup/blkio";

pub(crate) struct Throttle {
    group: PathBuf,
    /// Its major and minor number.
    disk: String,
}

impl Throttle {
    /// For the disk that this directory lies on, or what keeps this machine from it.
    pub(crate) fn new(ground: &Ground, directory: &Path, bytes_per_second: u64) -> Result<Self, String> {
        let controller = Path::new(CONTROLLER);
        if !controller.join("blkio.throttle.read_bps_device").exists() {
            return Err(format!("it has no controller of cgroups version 1 at {CONTROLLER}"));
        }
        let disk = disk_of(directory)?;
        let group = controller.join(format!("clawhub-compare-{}", std::process::id()));
        let make = || {
            fs::create_dir(&group)?;
            ground.remove_at_the_end(&group);
            fs::write(group.join("blkio.throttle.read_bps_device"), format!("{disk} {bytes_per_second}"))
        };
        make().map_err(|error| format!("{}: {error}", group.display()))?;
        Ok(Self { group, disk })
    }

    /// Slows these processes.
    pub(crate) fn add(&self, pids: &[u32]) {
        for pid in pids {
            fs::write(self.group.join("cgroup.procs"), pid.to_string()).expect("a process of ours");
        }
    }

    /// How many bytes its members have got from the disk.
    pub(crate) fn bytes_read(&self) -> u64 {
        let counts = fs::read_to_string(self.group.join("blkio.throttle.io_service_bytes"));
        let prefix = format!("{} Read ", self.disk);
        let counts = counts.expect("a group of ours");
        counts.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok()).unwrap_or(0)
    }
}

/// Major and minor number of the whole disk; a partition cannot be throttled.
fn disk_of(directory: &Path) -> Result<String, String> {
    let device = fs::metadata(directory).map_err(|error| error.to_string())?.dev();
    let number = format!("{}:{}", major(device), minor(device));
    let Ok(block) = fs::canonicalize(format!("/sys/dev/block/{number}")) else {
        return Err(format!("{} lies on no block device", directory.display()));
    };
    let whole = if block.join("partition").exists() { block.parent().unwrap_or(&block) } else { &block };
    fs::read_to_string(whole.join("dev"))
        .map(|text| text.trim().to_owned())
        .map_err(|error| error.to_string())
}

/// Drops the pages of all files below this directory that have at least so many bytes; how many such files there are.
pub(crate) fn forget_large_files(directory: &Path, least: u64) -> usize {
    let entries = fs::read_dir(directory).expect("a directory of ours").flatten();
    let of = |path: PathBuf| match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_dir() => forget_large_files(&path, least),
        Ok(metadata) if metadata.is_file() && metadata.len() >= least => {
            forget_pages(&File::open(&path).expect("a file of ours"));
            1
        }
        _ => 0,
    };
    entries.map(|entry| of(entry.path())).sum()
}
