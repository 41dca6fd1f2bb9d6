// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A back end that refuses a request when the test says so. It serves no queue, and knows which rings run.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use spec::balloon::QueueNumbering;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};

use crate::driver::FEATURES;

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// GET_VRING_BASE of this ring: the answer is no base.
    Stop(u32),
    /// SET_VRING_ADDR of this ring with logging.
    LoggedRing(u32),
}

/// What the back end knows.
#[derive(Debug, Default)]
pub struct State {
    /// Front ends that have connected.
    pub connections: u32,
    /// What it refuses.
    pub refuses: Option<Refusal>,
    /// Whether it logs what it writes.
    pub logs: bool,
    /// Rings that run, by number, and whether each is logged.
    pub running: [Option<bool>; QueueNumbering::MAX_QUEUES],
    /// Whether each ring is to be logged when it runs.
    logged: [bool; QueueNumbering::MAX_QUEUES],
}

impl State {
    /// Begins with the next front end.
    fn forget(&mut self) {
        *self = Self {
            connections: self.connections + 1,
            refuses: self.refuses,
            ..Self::default()
        };
    }

    /// The numbers of the rings that run.
    pub fn rings(&self) -> Vec<usize> {
        let rings = self.running.iter().enumerate();
        rings.filter_map(|(at, ring)| ring.map(|_| at)).collect()
    }
}

/// The back end, in a thread that serves one front end after the other.
pub struct RefusingBackEnd {
    folder: tempfile::TempDir,
    state: Arc<Mutex<State>>,
}

impl RefusingBackEnd {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let state = Arc::<Mutex<State>>::default();
        let theirs = Arc::clone(&state);
        thread::spawn(move || {
            while let Ok((socket, _)) = listener.accept() {
                theirs.lock().unwrap().forget();
                let back_end = Arc::new(Mutex::new(BackEnd(Arc::clone(&theirs))));
                let mut requests = BackendReqHandler::from_stream(socket, back_end);
                while matches!(
                    requests.handle_request(),
                    Ok(()) | Err(Error::ReqHandlerError(_))
                ) {}
            }
        });
        Self { folder, state }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

struct BackEnd(Arc<Mutex<State>>);

fn refused<T>() -> Result<T> {
    Err(Error::ReqHandlerError(io::Error::other("refused")))
}

impl VhostUserBackendReqHandlerMut for BackEnd {
    fn get_features(&mut self) -> Result<u64> {
        let own = VhostUserVirtioFeatures::PROTOCOL_FEATURES | VhostUserVirtioFeatures::LOG_ALL;
        Ok(FEATURES | own.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.0.lock().unwrap().logs = features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        _descriptor: u64,
        _used: u64,
        _available: u64,
        _log: u64,
    ) -> Result<()> {
        let mut state = self.0.lock().unwrap();
        let logged = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG);
        if logged && state.refuses == Some(Refusal::LoggedRing(index)) {
            return refused();
        }
        state.logged[index as usize] = logged;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let mut state = self.0.lock().unwrap();
        if state.refuses == Some(Refusal::Stop(index)) {
            return Ok(VhostUserVringState::new(index, u32::MAX));
        }
        state.running[index as usize] = None;
        Ok(VhostUserVringState::new(index, 0))
    }

    fn set_vring_kick(&mut self, index: u8, _event: Option<File>) -> Result<()> {
        let mut state = self.0.lock().unwrap();
        let logged = state.logged[usize::from(index)];
        state.running[usize::from(index)] = Some(logged);
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QueueNumbering::MAX_QUEUES as u64)
    }

    fn get_config(
        &mut self,
        _offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        Ok(vec![0; size as usize])
    }

    fn set_mem_table(
        &mut self,
        _regions: &[VhostUserMemoryRegion],
        _files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        Ok(None)
    }

    // What these ask for is of no matter here.

    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn set_vring_num(&mut self, _index: u32, _size: u32) -> Result<()> {
        Ok(())
    }

    fn set_vring_base(&mut self, _index: u32, _base: u32) -> Result<()> {
        Ok(())
    }

    fn set_vring_call(&mut self, _index: u8, _event: Option<File>) -> Result<()> {
        Ok(())
    }

    fn set_vring_err(&mut self, _index: u8, _event: Option<File>) -> Result<()> {
        Ok(())
    }

    fn set_vring_enable(&mut self, _index: u32, _enable: bool) -> Result<()> {
        Ok(())
    }

    fn set_config(&mut self, _at: u32, _bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Ok(())
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Ok(())
    }

    // These were not offered.

    fn reset_device(&mut self) -> Result<()> {
        refused()
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        refused()
    }

    fn get_shared_object(&mut self, _object: VhostUserSharedMsg) -> Result<File> {
        refused()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        refused()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        refused()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        refused()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        refused()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        refused()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        refused()
    }

    fn check_device_state(&mut self) -> Result<()> {
        refused()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        refused()
    }
}
