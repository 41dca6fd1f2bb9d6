// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest, its balloon device and its agent.

use std::error::Error;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use host_migrator::ControlClient;
use lacuna::nested::cpio::Archive;
use lacuna::nested::elf;
use spec::control::{HintState, Reply, Request};
use spec::hint_map::HintPhase;
use tempfile::TempDir;

use crate::agent::AgentPort;
use crate::guest::Guest;
use crate::initramfs::with_shell;
use crate::qemu_installation::Installation;
use crate::{MIB, PATIENCE, eventually, probe};

/// The arguments of `lacuna` that start the device.
pub const DEVICE_JOB: &str = "balloon";
const PORT: &str = "org.lacuna.agent.0";
const MEMORY: u64 = 1024 * MIB;
/// What the guest keeps in files, and what it writes once and frees: enough that the host need not allocate memory for the
/// guest's free pages during the measurement.
const IN_USE: u64 = 128 * MIB;
const FREED: u64 = 640 * MIB;
/// The program that measures in the guest.
const PROBE: &str = "/bin/probe";

/// The programs and files that are needed.
pub struct Parts {
    installation: Installation,
    kernel: PathBuf,
    initrd: Vec<u8>,
}

/// A booted guest with driver and agent.
pub struct Machine {
    guest: Guest,
    device: Child,
    control: ControlClient,
    agent: AgentPort,
    free: u64,
    _folder: TempDir,
}

/// A measurement that is under way.
pub struct Probe;

impl Machine {
    /// The programs and files, or a sentence about what is missing.
    pub fn gather() -> Result<Parts, String> {
        let files = lacuna::nested::pci_guest_files().map_err(|error| error.to_string())?;
        let modules = fs::read(&files.initrd).map_err(|error| error.to_string())?;
        let program = own_program().map_err(|error| error.to_string())?;
        Ok(Parts {
            installation: Installation::find_or_fetch()?,
            kernel: files.kernel,
            initrd: [modules, with_shell(&[])?, program].concat(),
        })
    }

    /// Boots the guest, makes it touch its memory, and starts driver and agent.
    pub fn boot(parts: Parts) -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let [socket, control, agent, initrd] =
            ["vmm", "control", "agent", "initrd"].map(|name| folder.path().join(name));
        fs::write(&initrd, &parts.initrd)?;
        let listener = UnixListener::bind(&agent)?;
        let device = Command::new(std::env::current_exe()?)
            .args([DEVICE_JOB, "device", "--socket-path"])
            .arg(&socket)
            .arg("--control-socket")
            .arg(&control)
            .stdin(Stdio::null())
            .spawn()?;
        let control = eventually("our device", || {
            ControlClient::connect(&control, PATIENCE).ok()
        });
        eventually("its other socket", || socket.exists().then_some(()));
        let guest = Guest::start(&qemu(&parts, &initrd, &socket, &agent));
        let mut machine = Self {
            agent: AgentPort::accept(&listener)?,
            guest,
            device,
            control,
            free: 0,
            _folder: folder,
        };
        machine.prepare()?;
        Ok(machine)
    }

    fn prepare(&mut self) -> Result<(), Box<dyn Error>> {
        let guest = &mut self.guest;
        guest.wait_for_boot();
        // Allocations must take one page, not 512.
        guest.run("echo never > /sys/kernel/mm/transparent_hugepage/enabled");
        guest.fill("used", IN_USE);
        guest.fill("freed", FREED);
        guest.run("rm /tmp/freed");
        guest.load_driver();
        guest.start_agent(&format!("virtio:{PORT}"), "");
        self.agent.wait_for_agent()?;
        self.free = self.guest.memory("MemFree");
        Ok(())
    }

    /// Starts to measure in the guest.
    pub fn start_probe(&mut self) -> Probe {
        let (started, stop, job) = (probe::STARTED, probe::STOP, probe::JOB);
        self.guest.run(&format!(
            "rm -f {started} {stop}; {PROBE} {job} > /tmp/result & P=$!; \
             until [ -e {started} ]; do sleep 0.1; done"
        ));
        Probe
    }

    /// Asks the driver for hints, waits until it has hinted all it can, and returns the number of pages.
    pub fn ask_driver(&mut self) -> Result<u64, Box<dyn Error>> {
        self.hints(Request::HintStart)?;
        loop {
            let state = self.hints(Request::HintState)?;
            if state.phase == HintPhase::Finished {
                return Ok(state.pages);
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Makes the driver release its hinted pages, and waits for that.
    pub fn release_driver(&mut self) -> Result<(), Box<dyn Error>> {
        self.hints(Request::HintStop)?;
        let most = self.free / 10 * 9;
        eventually("the guest's memory", || {
            (self.guest.memory("MemFree") > most).then_some(())
        });
        Ok(())
    }

    /// Asks the agent for a map, and returns the number of free pages in it.
    pub fn ask_agent(&mut self, epoch: u64) -> Result<u64, Box<dyn Error>> {
        Ok(self.agent.ask(epoch)?.free)
    }

    fn hints(&mut self, request: Request) -> Result<HintState, Box<dyn Error>> {
        match self.control.ask(request, None)? {
            Reply::HintState(state) => Ok(state),
            other => Err(format!("expected the state of the hints, got {other:?}").into()),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.device.kill();
        let _ = self.device.wait();
    }
}

impl Probe {
    /// Ends the measurement, and returns what was printed.
    pub fn stop(self, machine: &mut Machine) -> String {
        let stop = probe::STOP;
        machine
            .guest
            .run(&format!("touch {stop}; wait $P; cat /tmp/result"))
    }
}

fn qemu(parts: &Parts, initrd: &Path, balloon: &Path, agent: &Path) -> Command {
    let mut command = parts.installation.command();
    command
        .args(["-accel", "tcg", "-machine", "q35,memory-backend=memory"])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-serial", "stdio", "-m", &format!("{}M", MEMORY / MIB)])
        .arg("-object")
        .arg(format!("memory-backend-memfd,id=memory,size={MEMORY},share=on"))
        .arg("-chardev")
        .arg(format!("socket,id=balloon,path={}", balloon.display()))
        .arg("-device")
        .arg("vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs=5,vq_size=1024,config_size=16")
        .args(["-device", "virtio-serial", "-chardev"])
        .arg(format!("socket,id=agent,path={}", agent.display()))
        .arg("-device")
        .arg(format!("virtserialport,chardev=agent,name={PORT}"))
        .arg("-kernel")
        .arg(&parts.kernel)
        .arg("-initrd")
        .arg(initrd)
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off",
        ]);
    command
}

/// This program with its libraries, as a part of an initial ramdisk.
fn own_program() -> std::io::Result<Vec<u8>> {
    let program = std::env::current_exe()?;
    let mut archive = Archive::new(Vec::new());
    archive.file(PROBE, &elf::program(&program)?)?;
    for library in elf::libraries(&program)? {
        archive.file(&library, &elf::program(Path::new(&library))?)?;
    }
    archive.finish()
}
