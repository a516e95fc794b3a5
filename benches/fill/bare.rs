//! The least that a verifying pull-through cache must do, and nothing else: receive, hash, write to
//! a file, and send from that file with `sendfile`.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex};

use sha2::{Digest, Sha256};

use super::client::read_head;
use super::process::setting;

const BLOCK: usize = 1 << 20;

/// The bare loop's process: serves one client.
pub(crate) fn run() -> ExitCode {
    let size: u64 = setting("size").parse().expect("a size");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    println!("{}", listener.local_addr().expect("a bound address"));
    let (mut client, _) = listener.accept().expect("a client");
    let mut request = [0; 4096];
    let _ = client.read(&mut request).expect("a request");
    let mut origin = TcpStream::connect(setting("origin")).expect("the origin listens");
    write!(origin, "GET {} HTTP/1.1\r\n\r\n", setting("path")).expect("the request is sent");
    let file = Arc::new(tempfile::tempfile().expect("a file"));
    let arrived = Arc::new((Mutex::new(0u64), Condvar::new()));
    let sending = {
        let (file, arrived) = (Arc::clone(&file), Arc::clone(&arrived));
        std::thread::spawn(move || send(&client, &file, size, &arrived))
    };
    receive(&mut origin, &file, size, &arrived);
    sending.join().expect("the sending thread");
    ExitCode::SUCCESS
}

fn receive(origin: &mut TcpStream, file: &File, size: u64, arrived: &(Mutex<u64>, Condvar)) {
    // The few bytes that come with the head are not worth a special case: the origin repeats them.
    let (_, mut done) = read_head(origin);
    let (mut hasher, mut block) = (Sha256::new(), vec![0; BLOCK]);
    hasher.update(&block[..usize::try_from(done).expect("less than a block")]);
    while done < size {
        let read = origin.read(&mut block).expect("the body arrives");
        assert!(read > 0, "the origin sends everything");
        hasher.update(&block[..read]);
        file.write_all_at(&block[..read], done).expect("space on the disk");
        done += read as u64;
        *arrived.0.lock().expect("no panic under the lock") = done;
        arrived.1.notify_one();
    }
    std::hint::black_box(hasher.finalize());
}

fn send(client: &TcpStream, file: &File, size: u64, arrived: &(Mutex<u64>, Condvar)) {
    let mut client_writer = client;
    write!(client_writer, "HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n").expect("the client reads");
    let mut offset = 0;
    while offset < size {
        let ready = {
            let guard = arrived.0.lock().expect("no panic under the lock");
            *arrived.1.wait_while(guard, |arrived| *arrived <= offset).expect("no panic under the lock")
        };
        let want = usize::try_from(ready - offset).expect("fits").min(BLOCK);
        rustix::fs::sendfile(client, file, Some(&mut offset), want).expect("the client reads");
    }
    client.shutdown(Shutdown::Both).expect("the client is still there");
}
