//! States of VMs and images by oned's numbers (contract §2.4, §3.9).

/// `STATE` of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "OpenNebula's own names")]
pub enum State {
    Pending = 1,
    Hold = 2,
    Active = 3,
    Stopped = 4,
    Suspended = 5,
    Done = 6,
    Poweroff = 8,
    Undeployed = 9,
}

/// `LCM_STATE` of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "OpenNebula's own names")]
pub enum Lcm {
    Init = 0,
    Prolog = 1,
    Boot = 2,
    Running = 3,
    Migrate = 4,
    SaveStop = 5,
    SaveSuspend = 6,
    SaveMigrate = 7,
    PrologMigrate = 8,
    PrologResume = 9,
    EpilogStop = 10,
    Epilog = 11,
    Shutdown = 12,
    CleanupResubmit = 15,
    Unknown = 16,
    Hotplug = 17,
    ShutdownPoweroff = 18,
    BootPoweroff = 20,
    BootSuspended = 21,
    BootStopped = 22,
    CleanupDelete = 23,
    HotplugSnapshot = 24,
    HotplugNic = 25,
    HotplugSaveas = 26,
    HotplugSaveasPoweroff = 27,
    HotplugSaveasSuspended = 28,
    ShutdownUndeploy = 29,
    EpilogUndeploy = 30,
    PrologUndeploy = 31,
    BootUndeploy = 32,
    HotplugPrologPoweroff = 33,
    HotplugEpilogPoweroff = 34,
    BootMigrate = 35,
    BootFailure = 36,
    BootMigrateFailure = 37,
    PrologMigrateFailure = 38,
    PrologFailure = 39,
    EpilogFailure = 40,
    EpilogStopFailure = 41,
    EpilogUndeployFailure = 42,
    PrologMigratePoweroff = 43,
    PrologMigratePoweroffFailure = 44,
    PrologMigrateSuspend = 45,
    PrologMigrateSuspendFailure = 46,
    BootUndeployFailure = 47,
    BootStoppedFailure = 48,
    PrologResumeFailure = 49,
    PrologUndeployFailure = 50,
    DiskSnapshotPoweroff = 51,
    DiskSnapshotRevertPoweroff = 52,
    DiskSnapshotDeletePoweroff = 53,
    DiskSnapshotSuspended = 54,
    DiskSnapshotDeleteSuspended = 56,
    DiskSnapshot = 57,
    DiskSnapshotDelete = 59,
    DiskResize = 62,
    DiskResizePoweroff = 63,
    DiskResizeUndeployed = 64,
    HotplugNicPoweroff = 65,
    HotplugResize = 66,
    HotplugSaveasUndeployed = 67,
    HotplugSaveasStopped = 68,
    Backup = 69,
    BackupPoweroff = 70,
    Restore = 71,
}

impl State {
    /// As oned writes it.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl Lcm {
    /// As oned writes it.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The state to go on from when a failed one is retried, or counted as done or failed.
    #[must_use]
    pub fn of_failure(self) -> Option<Self> {
        Some(match self {
            Self::BootFailure => Self::Boot,
            Self::BootMigrateFailure => Self::BootMigrate,
            Self::PrologMigrateFailure => Self::PrologMigrate,
            Self::PrologMigratePoweroffFailure => Self::PrologMigratePoweroff,
            Self::PrologMigrateSuspendFailure => Self::PrologMigrateSuspend,
            Self::PrologFailure => Self::Prolog,
            Self::EpilogFailure => Self::Epilog,
            Self::EpilogStopFailure => Self::EpilogStop,
            Self::EpilogUndeployFailure => Self::EpilogUndeploy,
            Self::BootUndeployFailure => Self::BootUndeploy,
            Self::BootStoppedFailure => Self::BootStopped,
            Self::PrologResumeFailure => Self::PrologResume,
            Self::PrologUndeployFailure => Self::PrologUndeploy,
            _ => return None,
        })
    }

    /// Whether the transfer driver is at work in it, or was before it failed.
    #[must_use]
    pub fn is_transfer(self) -> bool {
        matches!(
            self.of_failure().unwrap_or(self),
            Self::Prolog
                | Self::PrologMigrate
                | Self::PrologMigratePoweroff
                | Self::PrologMigrateSuspend
                | Self::PrologResume
                | Self::PrologUndeploy
                | Self::Epilog
                | Self::EpilogStop
                | Self::EpilogUndeploy
        )
    }

    /// Whether the guest is being ended in it.
    #[must_use]
    pub fn ends_guest(self) -> bool {
        matches!(
            self,
            Self::Shutdown
                | Self::ShutdownPoweroff
                | Self::ShutdownUndeploy
                | Self::SaveSuspend
                | Self::SaveStop
                | Self::SaveMigrate
        )
    }

    /// Whether the VM is being booted, or that failed: a report that it runs ends it (§6.6).
    #[must_use]
    pub fn is_boot(self) -> bool {
        matches!(
            self.of_failure().unwrap_or(self),
            Self::Boot
                | Self::BootPoweroff
                | Self::BootSuspended
                | Self::BootStopped
                | Self::BootUndeploy
                | Self::BootMigrate
        )
    }
}

/// What a user calls the two together.
#[must_use]
pub fn shown(state: State, lcm: Lcm) -> String {
    let name = match state {
        State::Active => format!("{lcm:?}"),
        state => format!("{state:?}"),
    };
    name.to_uppercase()
}
