use std::{io, time::Instant};

/// Waits more precisely than tokio's timers, which tick in milliseconds and would make a burst of what is due within one.
pub struct Timer(imp::Timer);

impl Timer {
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        imp::Timer::new().map(Self)
    }

    pub async fn until(&self, due: Instant) {
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.0.wait(left).await;
        }
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use std::{fs::File, io, os::fd::AsFd, time::Duration};

    use nix::sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    };
    use tokio::net::unix::pipe::Receiver;

    pub struct Timer {
        timer: TimerFd,
        /// The same timer, read like a pipe: tokio's other way to wait for a descriptor of one's own is unsafe.
        rings: Receiver,
    }

    impl Timer {
        pub fn new() -> io::Result<Self> {
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
            let rings = Receiver::from_file_unchecked(File::from(timer.as_fd().try_clone_to_owned()?))?;
            Ok(Self { timer, rings })
        }

        pub async fn wait(&self, left: Duration) {
            let set = self.timer.set(Expiration::OneShot(TimeSpec::from_duration(left)), TimerSetTimeFlags::empty());
            if set.is_err() || self.rings().await.is_err() {
                tokio::time::sleep(left).await;
            }
        }

        async fn rings(&self) -> io::Result<()> {
            loop {
                self.rings.readable().await?;
                match self.rings.try_read(&mut [0; 8]) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    rang => return rang.map(drop),
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::{io, time::Duration};

    pub struct Timer;

    impl Timer {
        pub fn new() -> io::Result<Self> {
            Ok(Self)
        }

        pub async fn wait(&self, left: Duration) {
            tokio::time::sleep(left).await;
        }
    }
}
