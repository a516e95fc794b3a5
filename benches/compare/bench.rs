//! What all scenarios start from: the options, the temporary directory, the origin and the subjects.

use std::net::SocketAddr;
use std::process::Stdio;

use crate::children::{Child, Ground, own};
use crate::options::Options;
use crate::origin::{Blob, Manifest, write_catalogue};
use crate::subject::{Kind, Setup, Subject};

pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) ground: Ground,
}

/// A running origin.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Origin {
    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }
}

impl Bench {
    /// An origin that has these, behind a link of so many bytes per second.
    pub(crate) fn origin(&self, blobs: &[Blob], manifests: &[Manifest], rate: Option<u64>) -> Origin {
        let directory = self.ground.directory(&format!("origin-{:08x}", fastrand::u32(..)));
        let catalogue = write_catalogue(&directory, blobs, manifests).display().to_string();
        let rate = rate.map_or_else(String::new, |rate| rate.to_string());
        let mut command = own("origin", &[("catalogue", &catalogue), ("rate", &rate)]);
        command.stdout(Stdio::piped());
        let mut child = self.ground.spawn(command, &directory.join("stderr.log"));
        Origin { address: child.announced(), child }
    }

    pub(crate) fn subject(&self, kind: Kind, origin: SocketAddr, setup: &Setup) -> Subject {
        Subject::start(&self.ground, kind, &self.options.edge, origin, setup)
    }

    /// Tells how far it is.
    pub(crate) fn say(&self, text: &str) {
        eprintln!("{text}");
    }
}
