//! The page cache.

use std::fs::File;

use rustix::fs::{Advice, fadvise};

/// Has a file read from its disk the next time.
pub(crate) fn forget_pages(file: &File) {
    // A page that is not written yet cannot be dropped.
    file.sync_data().expect("room on the disk");
    fadvise(file, 0, None, Advice::DontNeed).expect("a file");
}
