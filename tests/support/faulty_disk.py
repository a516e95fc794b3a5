#!/usr/bin/env python3
"""A disk that fails on demand: shows one directory at another place, through FUSE.

    faulty_disk.py MOUNTPOINT BACKING CONTROL

While the file CONTROL says `write`, whatever would change something fails with EIO; while it says `read`, the reading
of files that were opened for nothing else does: what somebody has just written a real disk has in memory. Nothing is
cached by the kernel, so that each read is one of the disk. Says `mounted` when it is, and ends with its standard
input. Speaks the kernel's protocol (linux/fuse.h, 7.31) itself: it needs /dev/fuse and no library.
"""

import ctypes
import errno
import fcntl
import os
import select
import struct
import sys

(LOOKUP, FORGET, GETATTR, SETATTR, MKDIR, UNLINK, RMDIR, RENAME) = (1, 2, 3, 4, 9, 10, 11, 12)
(OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT) = (14, 15, 16, 17, 18, 20, 25, 26)
(OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, CREATE, INTERRUPT) = (27, 28, 29, 30, 35, 36)
(BATCH_FORGET, RENAME2) = (42, 45)
CHANGES = {SETATTR, MKDIR, UNLINK, RMDIR, RENAME, WRITE, FSYNC, FSYNCDIR, CREATE, RENAME2}
MAX_WRITE = 1 << 17
DIRECT_IO = 1


class Node:
    def __init__(self, path):
        self.path = path  # None once it is deleted
        self.files = []


def is_read_only(file):
    return fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


class Disk:
    def __init__(self, backing, control):
        self.control = control
        self.nodes = {1: Node(backing)}
        self.ids = {backing: 1}

    def fault(self):
        try:
            with open(self.control) as control:
                return control.read().strip()
        except FileNotFoundError:
            return ""

    def node_id(self, path):
        if path not in self.ids:
            self.ids[path] = len(self.nodes) + 1
            self.nodes[self.ids[path]] = Node(path)
        return self.ids[path]

    def forget(self, path):
        if path in self.ids:
            self.nodes[self.ids.pop(path)].path = None

    def attributes(self, node_id):
        node = self.nodes[node_id]
        if node.path is None and not node.files:
            raise OSError(errno.ESTALE, "deleted")
        stat = os.lstat(node.path) if node.path else os.fstat(node.files[0])
        times = (stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns)
        return struct.pack(
            "<6Q10I",
            *(node_id, stat.st_size, stat.st_blocks),
            *(time // 10**9 for time in times),
            *(time % 10**9 for time in times),
            *(stat.st_mode, stat.st_nlink, stat.st_uid, stat.st_gid, stat.st_rdev, 4096, 0),
        )

    def entry(self, path):
        os.lstat(path)
        node_id = self.node_id(path)
        return struct.pack("<4QII", node_id, 0, 0, 0, 0, 0) + self.attributes(node_id)

    def opened(self, node_id, flags):
        file = os.open(self.nodes[node_id].path, flags & ~(os.O_CREAT | os.O_EXCL))
        self.nodes[node_id].files.append(file)
        return struct.pack("<QII", file, DIRECT_IO, 0)

    def answer(self, opcode, node_id, body):
        if opcode == INIT:
            big_writes = 1 << 5
            return struct.pack("<4I2H2I2H2I24x", 7, 31, 0, big_writes, 16, 12, MAX_WRITE, 1, 0, 0, 0, 0)
        fault = self.fault()
        is_cold = opcode == READ and is_read_only(struct.unpack_from("<Q", body)[0])
        if (fault == "write" and opcode in CHANGES) or (fault == "read" and is_cold):
            raise OSError(errno.EIO, "as told")
        node = self.nodes[node_id]
        name = lambda at=0: os.path.join(node.path, os.fsdecode(body[at:].split(b"\0")[0]))
        if opcode == LOOKUP:
            return self.entry(name())
        if opcode == GETATTR:
            return struct.pack("<QII", 0, 0, 0) + self.attributes(node_id)
        if opcode == SETATTR:
            valid, _, _, size = struct.unpack_from("<IIQQ", body)
            target = node.path or node.files[0]
            if valid & 1:
                os.chmod(target, struct.unpack_from("<I", body, 68)[0] & 0o7777)
            if valid & 8:
                os.truncate(target, size)
            return struct.pack("<QII", 0, 0, 0) + self.attributes(node_id)
        if opcode == MKDIR:
            os.mkdir(name(8), struct.unpack_from("<I", body)[0])
            return self.entry(name(8))
        if opcode in (UNLINK, RMDIR):
            (os.unlink if opcode == UNLINK else os.rmdir)(name())
            self.forget(name())
            return b""
        if opcode in (RENAME, RENAME2):
            directory = self.nodes[struct.unpack_from("<Q", body)[0]].path
            old, new = body[8 if opcode == RENAME else 16 :].split(b"\0")[:2]
            old, new = os.path.join(node.path, os.fsdecode(old)), os.path.join(directory, os.fsdecode(new))
            os.rename(old, new)
            self.forget(new)
            if old in self.ids:
                self.ids[new] = self.ids.pop(old)
                self.nodes[self.ids[new]].path = new
            return b""
        if opcode == CREATE:
            flags, mode = struct.unpack_from("<II", body)
            os.close(os.open(name(16), flags | os.O_CREAT, mode))
            entry = self.entry(name(16))
            return entry + self.opened(self.ids[name(16)], flags)
        if opcode == OPEN:
            return self.opened(node_id, struct.unpack_from("<I", body)[0])
        if opcode == READ:
            file, offset, size = struct.unpack_from("<QQI", body)
            return os.pread(file, size, offset)
        if opcode == WRITE:
            file, offset, size = struct.unpack_from("<QQI", body)
            return struct.pack("<II", os.pwrite(file, body[40 : 40 + size], offset), 0)
        if opcode == RELEASE:
            file = struct.unpack_from("<Q", body)[0]
            node.files.remove(file)
            os.close(file)
            return b""
        if opcode == STATFS:
            stats = os.statvfs(self.nodes[1].path)
            counts = (stats.f_blocks, stats.f_bfree, stats.f_bavail, stats.f_files, stats.f_ffree)
            return struct.pack("<5Q4I24x", *counts, stats.f_bsize, 255, stats.f_frsize, 0)
        if opcode == READDIR:
            _, offset, size = struct.unpack_from("<QQI", body)
            found = b""
            for index, entry in enumerate(sorted(os.listdir(node.path))[offset:], offset + 1):
                encoded = os.fsencode(entry)
                kind = os.lstat(os.path.join(node.path, entry)).st_mode >> 12
                record = struct.pack("<QQII", index, index, len(encoded), kind) + encoded
                record += bytes(-len(record) % 8)
                if len(found) + len(record) > size:
                    break
                found += record
            return found
        if opcode == OPENDIR:
            return struct.pack("<QII", 0, 0, 0)
        if opcode in (FSYNC, FSYNCDIR, FLUSH, RELEASEDIR):
            return b""
        raise OSError(errno.ENOSYS, "not needed")


def main(mountpoint, backing, control):
    os.makedirs(mountpoint, exist_ok=True)
    os.makedirs(backing, exist_ok=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"faulty", os.fsencode(mountpoint), b"fuse", 0, options):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    disk = Disk(backing, control)
    while True:
        ready, _, _ = select.select([device, 0], [], [])
        if 0 in ready:
            return
        try:
            request = os.read(device, MAX_WRITE + 4096)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):
                continue
            return
        _, opcode, unique, node_id = struct.unpack_from("<IIQQ", request)
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            continue
        try:
            answer, code = disk.answer(opcode, node_id, request[40:]), 0
        except OSError as error:
            answer, code = b"", -error.errno
        try:
            os.write(device, struct.pack("<IiQ", 16 + len(answer), code, unique) + answer)
        except FileNotFoundError:
            pass  # who asked has gone


main(*sys.argv[1:])
