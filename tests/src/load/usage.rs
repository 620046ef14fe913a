//! What a process uses, read from `/proc`: processor time and resident memory.

use anyhow::{Context, Result};

/// Clock ticks a second in `/proc/PID/stat`: USER_HZ, which is 100 in every Linux ABI of x86-64.
const USER_HZ: f64 = 100.0;

/// Which process.
#[derive(Debug, Clone, Copy)]
pub enum Who {
    /// This one.
    Us,
    /// That one.
    Process(u32),
}

/// What it has used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Seconds of processor time, of all threads, in user and kernel mode.
    pub cpu: f64,
    /// Resident memory in MiB.
    pub resident: f64,
}

// === impl Usage ===

impl Usage {
    /// Now.
    pub fn of(who: Who) -> Result<Self> {
        let folder = match who {
            Who::Us => "/proc/self".to_owned(),
            Who::Process(id) => format!("/proc/{id}"),
        };
        let read = |file| {
            let path = format!("{folder}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("cannot read `{path}`"))
        };
        let (stat, status) = (read("stat")?, read("status")?);
        let cpu = cpu(&stat).with_context(|| format!("`{folder}/stat` has no times: {stat}"))?;
        let resident = resident(&status).with_context(|| format!("`{folder}/status` has no VmRSS"))?;
        Ok(Self { cpu, resident })
    }
}

/// Fields 14 and 15, utime and stime (proc(5)); the second field, the name, may hold spaces and parentheses.
fn cpu(stat: &str) -> Option<f64> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let [user, kernel] = [fields.get(11)?, fields.get(12)?].map(|field| field.parse::<f64>().ok());
    Some((user? + kernel?) / USER_HZ)
}

fn resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 300 0 0 0 250 50 0 0 20 0 3 0 100 200000 900";
        assert_eq!(cpu(stat), Some(3.0));
        assert_eq!(cpu("7 (cut short) S 1"), None);
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2.0));
        assert_eq!(resident("Name:\tx\n"), None);
    }

    #[test]
    fn work_is_seen() {
        let before = Usage::of(Who::Us).unwrap();
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed().as_millis() < 100 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let after = Usage::of(Who::Process(std::process::id())).unwrap();
        // Other tests of this process may work too; a busy machine may give this one little.
        assert!(after.cpu > before.cpu && after.resident > 0.0, "{before:?} {after:?}");
        assert!(Usage::of(Who::Process(u32::MAX)).unwrap_err().to_string().contains("/proc/4294967295/stat"));
    }
}
