//! A network of the comparison's own, where it may choose how TCP behaves.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::children::{namespaced, setting};

const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// Goes on in a network namespace of its own with this congestion control. Where none is to be had (it takes root), the
/// comparison runs with what the machine has, and its results say so.
///
/// Linux comes with cubic. bbr paces each connection with a timer, on loopback too: each 64 KiB then cost an interrupt
/// whoever sends them, and the figures are those of the timers.
///
/// # Errors
/// That the kernel does not have this congestion control, or not for namespaces.
pub(crate) fn enter(congestion: &str) -> Result<(), String> {
    if setting("namespace").is_empty() {
        let is_allowed = Command::new("unshare").args(["--net", "ip", "link", "set", "lo", "up"]).status();
        if is_allowed.is_ok_and(|status| status.success()) {
            let error = namespaced().exec();
            return Err(format!("this program does not start again: {error}"));
        }
        eprintln!("no network namespace: TCP's congestion control stays {}", current());
        return Ok(());
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.is_ok_and(|status| status.success()) {
        return Err("the loopback interface of the namespace stays down".to_owned());
    }
    fs::write(CONGESTION_CONTROL, congestion).map_err(|error| match error.kind() {
        // It is there, but not for namespaces.
        io::ErrorKind::PermissionDenied => format!(
            "TCP's congestion control {congestion} is not allowed here: \
             add it to the sysctl net.ipv4.tcp_allowed_congestion_control of the machine"
        ),
        _ => format!("TCP's congestion control {congestion} is not to be had: {error}"),
    })
}

/// The congestion control of new connections.
pub(crate) fn current() -> String {
    fs::read_to_string(CONGESTION_CONTROL).unwrap_or_default().trim().to_owned()
}
