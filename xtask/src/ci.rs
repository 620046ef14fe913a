//! `cargo xtask ci`: every check that a change has to pass, all of them run whatever the earlier ones say,
//! and a table at the end. The tests are those of `cargo xtask test`; one cargo profile serves them all, so
//! that little is built twice.

mod arrows;
mod pure;

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::process;
use crate::report::{Outcome, Report};
use crate::setup::{self, Environment};
use crate::test::{self, Tally};

pub(crate) fn run() -> Result<()> {
    let mut report = Report::default();
    let mut environment = None;
    report.check("set-up", || {
        environment = Some(setup::ensure(&test::NEEDS)?);
        passed()
    });
    report.check("PostgreSQL", || Ok(postgres(environment.as_ref())));
    // What takes a second comes first: a missing blank is not worth ten minutes' wait.
    report.check("formatting", || {
        process::run(&mut process::cargo(["fmt", "--all", "--check"]))?;
        passed()
    });
    report.check("arrows between crates", arrows::check);
    report.check("diffusion is pure", pure::check);
    report.check("cargo-deny", deny);
    report.check("advisories", advisories);
    report.check("lints", || {
        let args = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        with(environment.as_ref(), |environment| process::run(environment.apply(&mut process::cargo(args))))
    });
    report.check("documentation", || {
        let mut doc = process::cargo(["doc", "--workspace", "--no-deps", "--document-private-items"]);
        doc.env("RUSTDOCFLAGS", "-D warnings");
        with(environment.as_ref(), |environment| process::run(environment.apply(&mut doc)))
    });
    let mut tally = Tally::default();
    report.check("tests", || {
        with(environment.as_ref(), |environment| test::run_all(environment, &[], &mut tally))?;
        Ok(Outcome::Passed(tally.total()))
    });
    tally.print();
    report.finish()
}

fn passed() -> Result<Outcome> {
    Ok(Outcome::Passed(String::new()))
}

/// For checks that build the trainer.
fn with(
    environment: Option<&Environment>,
    check: impl FnOnce(&Environment) -> Result<()>,
) -> Result<Outcome> {
    let Some(environment) = environment else {
        return Ok(Outcome::NotRun("the set-up failed".to_owned()));
    };
    check(environment)?;
    passed()
}

/// Whether the tests of what servers share will run on one: without, they are passed over.
fn postgres(environment: Option<&Environment>) -> Outcome {
    match environment.and_then(|environment| environment.get("WINDOWPANE_TEST_POSTGRES")) {
        Some(folder) => Outcome::Passed(format!("its programs are in {}", folder.display())),
        None => Outcome::NotRun(
            "NO TEST RUNS ON POSTGRESQL: there is none here (`apt-get install postgresql`)".to_owned(),
        ),
    }
}

/// `deny.toml` holds the arrows too, and the licences and sources of all that we build on.
fn deny() -> Result<Outcome> {
    if !has_cargo_deny() {
        return Ok(Outcome::NotRun(
            "cargo-deny is not installed; the arrows above were checked by our own means".to_owned(),
        ));
    }
    process::run(&mut process::cargo(["deny", "check", "bans", "licenses", "sources"]))?;
    passed()
}

/// What is known of holes in the crates that we build on, by a database that is fetched for it. Without it nothing is
/// known, which is no reason to pass.
fn advisories() -> Result<Outcome> {
    if !has_cargo_deny() {
        return Ok(Outcome::NotRun(
            "NOBODY LOOKED FOR KNOWN HOLES: cargo-deny is not installed (`cargo install cargo-deny`)"
                .to_owned(),
        ));
    }
    if let Err(error) = process::capture(&mut process::cargo(["deny", "fetch", "db"])) {
        return Ok(Outcome::NotRun(format!(
            "NOBODY LOOKED FOR KNOWN HOLES: the advisory database is not to be had: {error:#}"
        )));
    }
    process::run(&mut process::cargo(["deny", "check", "--disable-fetch", "advisories"]))?;
    passed()
}

fn has_cargo_deny() -> bool {
    let mut probe = Command::new("cargo-deny");
    probe.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}
