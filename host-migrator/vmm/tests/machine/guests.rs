// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Machines that run programs of a few instructions, in the environment of [`spec::bare`].

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use host_migrator::{GuestRam, SourceMachine, Trace};
use reference_vmm::{
    BareWorkload, DirtyLogKind, Guest, GuestKind, Machine, MachineConfig, MachineEvent,
    MemoryOptions, Outlets,
};
use spec::PAGE_SIZE;
use spec::bare::IMAGE_GPA;
use spec_testing::within;
use vm_memory::{Bytes, GuestAddress};

/// Where the programs below keep the data that they share with the test.
pub const MAILBOX: u64 = 0x30_0000;
/// The first of the pages that [`counter`] writes.
pub const COUNTED: u64 = 0x40_0000;
/// How many pages [`counter`] writes.
pub const COUNTED_PAGES: u64 = 256;

/// Where the console's output goes.
pub type Output = Box<dyn Write + Send>;

/// A test's machine, with its output and its events.
pub struct Subject {
    pub machine: Machine,
    pub console: Receiver<u8>,
    pub events: Receiver<MachineEvent>,
}

/// Whether this machine has KVM.
pub fn have_kvm() -> bool {
    match kvm_ioctls::Kvm::new() {
        Ok(_) => true,
        Err(error) => {
            spec_testing::skipped(format_args!("/dev/kvm cannot be opened: {error}"));
            false
        }
    }
}

pub fn config(memory_bytes: u64, vcpus: u8) -> MachineConfig {
    MachineConfig {
        memory_bytes,
        memory: MemoryOptions::default(),
        vcpus,
        balloon_socket: None,
        agent_socket: None,
        dirty_log: DirtyLogKind::Bitmap,
        trace: Trace::default(),
    }
}

/// A paused machine with one vCPU and this program.
pub fn program(memory_bytes: u64, code: &[u8]) -> Subject {
    let guest = Guest::BareImage(elf(code), BareWorkload::default());
    guest_on(&config(memory_bytes, 1), &guest)
}

/// A machine of 16 MiB whose guest has begun to count and is stopped.
pub fn stopped_counter() -> Subject {
    let mut subject = program(16 << 20, &counter());
    subject.machine.start().unwrap();
    subject.wait("the guest to count", |subject| subject.word(MAILBOX) > 0);
    subject.stop();
    subject
}

/// As [`program`], with the console's output going to `output`.
pub fn program_with_console(memory_bytes: u64, code: &[u8], output: Output) -> Subject {
    let guest = Guest::BareImage(elf(code), BareWorkload::default());
    let config = config(memory_bytes, 1);
    subject(|outlets| {
        let outlets = Outlets {
            console: output,
            ..outlets
        };
        Machine::new(&config, &guest, outlets).unwrap()
    })
}

pub fn guest_on(config: &MachineConfig, guest: &Guest) -> Subject {
    subject(|outlets| Machine::new(config, guest, outlets).unwrap())
}

pub fn incoming(config: &MachineConfig) -> Subject {
    subject(|outlets| Machine::incoming(config, GuestKind::Bare, false, outlets).unwrap())
}

fn subject(make: impl FnOnce(Outlets) -> Machine) -> Subject {
    let (console_sender, console) = channel();
    let (event_sender, events) = channel();
    let machine = make(Outlets {
        console: Box::new(Sending(console_sender)),
        events: event_sender,
    });
    Subject {
        machine,
        console,
        events,
    }
}

/// Waits until [`MAILBOX`] is not 0. Then adds 1 to that many words, whose addresses begin at [`MAILBOX`] + 8, and
/// writes 0 to [`MAILBOX`].
pub fn postman() -> Vec<u8> {
    [
        &[0x48, 0x8b, 0x0c, 0x25, 0x00, 0x00, 0x30, 0x00][..], // wait: mov rcx, [MAILBOX]
        &[0x48, 0x85, 0xc9],                                   // test rcx, rcx
        &[0x74, 0x22],                                         // jz sleep
        &[0x48, 0xc7, 0xc6, 0x08, 0x00, 0x30, 0x00],           // mov rsi, MAILBOX + 8
        &[0x48, 0x8b, 0x3e],                                   // next: mov rdi, [rsi]
        &[0x48, 0xff, 0x07],                                   // inc qword [rdi]
        &[0x48, 0x83, 0xc6, 0x08],                             // add rsi, 8
        &[0x48, 0xff, 0xc9],                                   // dec rcx
        &[0x75, 0xf1],                                         // jnz next
        &[0x48, 0xc7, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00],     // mov qword [MAILBOX],
        &[0x00, 0x00, 0x00, 0x00],                             //   0
        &[0xb8, 0xe8, 0x03, 0x00, 0x00],                       // sleep: mov eax, 1000
        &[0x66, 0xba, 0x10, 0x05],                             // mov dx, PORT_SLEEP
        &[0xef],                                               // out dx, eax
        &[0xeb, 0xc5],                                         // jmp wait
    ]
    .concat()
}

/// Counts at [`MAILBOX`] for ever. Writes each number to one of [`COUNTED_PAGES`] in turn, and its last byte to the
/// console.
pub fn counter() -> Vec<u8> {
    [
        &[0x48, 0x8b, 0x1c, 0x25, 0x00, 0x00, 0x30, 0x00][..], // again: mov rbx, [MAILBOX]
        &[0x48, 0xff, 0xc3],                                   // inc rbx
        &[0x48, 0x89, 0x1c, 0x25, 0x00, 0x00, 0x30, 0x00],     // mov [MAILBOX], rbx
        &[0x48, 0x89, 0xdf],                                   // mov rdi, rbx
        &[0x81, 0xe7, 0xff, 0x00, 0x00, 0x00],                 // and edi, COUNTED_PAGES - 1
        &[0xc1, 0xe7, 0x0c],                                   // shl edi, 12
        &[0x81, 0xc7, 0x00, 0x00, 0x40, 0x00],                 // add edi, COUNTED
        &[0x48, 0x89, 0x1f],                                   // mov [rdi], rbx
        &[0x89, 0xd8],                                         // mov eax, ebx
        &[0x66, 0xba, 0xf8, 0x03],                             // mov dx, PORT_CONSOLE
        &[0xee],                                               // out dx, al
        &[0xeb, 0xcf],                                         // jmp again
    ]
    .concat()
}

/// Where the second vCPU of [`writer_and_reader`] counts.
pub const READ: u64 = MAILBOX + PAGE_SIZE;

/// vCPU 0 writes to 2048 pages from [`COUNTED`] on, again and again, and counts at [`MAILBOX`]. vCPU 1 reads them, and counts at [`READ`].
pub fn writer_and_reader() -> Vec<u8> {
    let pages = [
        &[0xb9, 0x00, 0x08, 0x00, 0x00][..], // all: mov ecx, 2048
        &[0xbf, 0x00, 0x00, 0x40, 0x00],     // mov edi, COUNTED
    ];
    let next = [
        &[0x81, 0xc7, 0x00, 0x10, 0x00, 0x00][..], // add edi, 4096
        &[0x48, 0xff, 0x04, 0x25],                 // inc qword [...]
    ];
    let rest = [
        &[0xff, 0xc9][..], // dec ecx
        &[0x75, 0xeb],     // jnz next
        &[0xeb, 0xdf],     // jmp all
    ];
    let read = u32::try_from(READ).unwrap().to_le_bytes();
    let mailbox = u32::try_from(MAILBOX).unwrap().to_le_bytes();
    [
        &[0x48, 0x85, 0xff, 0x75, 0x21][..], // test rdi, rdi; jnz reader
        &pages.concat(),
        &[0x48, 0xff, 0x07], // next: inc qword [rdi]
        &next.concat(),
        &mailbox,
        &rest.concat(),
        &pages.concat(),     // reader:
        &[0x48, 0x8b, 0x07], // next: mov rax, [rdi]
        &next.concat(),
        &read,
        &rest.concat(),
    ]
    .concat()
}

impl Subject {
    /// Has [`postman`] write `pages`, and waits until it has done so.
    pub fn post(&mut self, pages: &[u64]) {
        let memory = self.machine.ram().memory();
        for (at, page) in (MAILBOX + 8..).step_by(8).zip(pages) {
            memory
                .write_obj(page * PAGE_SIZE, GuestAddress(at))
                .unwrap();
        }
        memory
            .write_obj(pages.len() as u64, GuestAddress(MAILBOX))
            .unwrap();
        self.wait("the guest to write", |subject| subject.word(MAILBOX) == 0);
    }

    pub fn word(&self, gpa: u64) -> u64 {
        self.machine
            .ram()
            .memory()
            .read_obj(GuestAddress(gpa))
            .unwrap()
    }

    /// Waits until `done` returns true. Fails if the guest crashes, or after a minute.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        within(Duration::from_secs(60), what, || {
            if let Ok(event @ MachineEvent::Crashed(_)) = self.events.try_recv() {
                panic!("{event:?}");
            }
            done(self).then_some(())
        });
    }

    pub fn stop(&mut self) {
        self.machine.stop_vcpus().unwrap();
        self.machine.stop_devices().unwrap();
    }
}

/// Copies the memory of one machine to another.
pub fn copy_memory(from: &GuestRam, to: &GuestRam) {
    for region in from.regions() {
        for first in (region.first()..region.end()).step_by(256) {
            let range = spec::PageRange::new(first, 256.min(region.end() - first)).unwrap();
            let mut pages = vec![0; range.bytes() as usize];
            from.read(range, &mut pages).unwrap();
            if pages.iter().any(|byte| *byte != 0) {
                to.write(range, &pages).unwrap();
            }
        }
    }
}

/// A static executable with `code` at [`IMAGE_GPA`].
pub fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut image = vec![0; HEADERS as usize];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]); // executable, x86-64, version 1
    put(24, &IMAGE_GPA.to_le_bytes()); // entry
    put(32, &64u64.to_le_bytes()); // program headers
    put(52, &[64, 0, 56, 0, 1]); // sizes of the headers, one program header
    put(64, &[1, 0, 0, 0, 5]); // load; read and execute
    put(72, &HEADERS.to_le_bytes()); // offset
    put(80, &IMAGE_GPA.to_le_bytes());
    put(88, &IMAGE_GPA.to_le_bytes());
    put(96, &(code.len() as u64).to_le_bytes());
    put(104, &(code.len() as u64).to_le_bytes());
    image.extend(code);
    image
}

struct Sending(Sender<u8>);

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The test may have stopped listening.
        let _ = bytes.iter().try_for_each(|byte| self.0.send(*byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
