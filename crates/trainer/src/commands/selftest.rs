//! `trainer selftest`: whether a device computes what it should, as a table or as JSON.

use anyhow::{Result, bail};
use model::device;
use model::selftest::Finding;
use serde::Serialize;

use crate::cli::SelftestArgs;
use crate::commands::print;
use crate::policy::open_device;
use crate::selftest;

/// What `--json` prints.
#[derive(Serialize)]
struct Json<'a> {
    program: &'static str,
    device: String,
    passed: bool,
    comparisons: usize,
    missed: usize,
    seconds: f64,
    findings: Vec<Row<'a>>,
}

/// A comparison.
#[derive(Serialize)]
struct Row<'a> {
    op: &'a str,
    shape: &'a str,
    dtype: &'a str,
    /// Null where it is infinite or not a number.
    error: Option<f64>,
    tolerance: f64,
    place: &'a str,
    passed: bool,
    failure: Option<&'a str>,
}

impl<'a> From<&'a Finding> for Row<'a> {
    fn from(finding: &'a Finding) -> Self {
        Self {
            op: &finding.op,
            shape: &finding.shape,
            dtype: finding.dtype,
            error: Some(finding.error).filter(|error| error.is_finite()),
            tolerance: finding.tolerance,
            place: &finding.place,
            passed: finding.passed(),
            failure: finding.failure.as_deref(),
        }
    }
}

/// Compares everything on the device, and fails if anything missed.
pub(super) fn run(args: &SelftestArgs) -> Result<()> {
    let device = open_device(args.device)?;
    let name = device::name(&device);
    if !args.json {
        print(&format!("trainer {} on {name}\n{}", env!("CARGO_PKG_VERSION"), header()))?;
    }
    let mut closed = Ok(());
    let report = selftest::run(&device, |finding| {
        if !args.json && closed.is_ok() {
            closed = print(&row(finding));
        }
    });
    closed?;
    let (comparisons, missed) = (report.findings.len(), report.missed().count());
    if args.json {
        let findings = report.findings.iter().map(Row::from).collect();
        let program = env!("CARGO_PKG_VERSION");
        let (passed, seconds) = (missed == 0, report.seconds);
        let json = Json { program, device: name.clone(), passed, comparisons, missed, seconds, findings };
        print(&format!("{}\n", serde_json::to_string_pretty(&json)?))?;
    } else {
        print(&format!("{comparisons} comparisons on {name}, {missed} missed, {:.0} s\n", report.seconds))?;
    }
    match report.missed().next() {
        None => Ok(()),
        Some(first) => bail!("selftest: {missed} of {comparisons} comparisons missed; the first: {}", sentence(first)),
    }
}

fn header() -> String {
    let line = format!(
        "{:<14} {:<52} {:<5} {:>8} {:>8}  {:<7} {}",
        "op", "shape", "dtype", "error", "at most", "verdict", "worst at"
    );
    format!("{line}\n{}\n", "-".repeat(line.len()))
}

/// A line of the table.
fn row(finding: &Finding) -> String {
    let Finding { op, shape, dtype, error, tolerance, place, failure } = finding;
    let verdict = if finding.passed() { "ok" } else { "MISSED" };
    let why = failure.as_ref().map(|why| format!(" {why}")).unwrap_or_default();
    format!("{op:<14} {shape:<52} {dtype:<5} {error:>8.1e} {tolerance:>8.1e}  {verdict:<7} {place}{why}\n")
}

fn sentence(finding: &Finding) -> String {
    let Finding { op, shape, dtype, error, tolerance, place, failure } = finding;
    let what = match failure {
        Some(why) => why.clone(),
        None => format!("{error:.1e} at {place}, at most {tolerance:.1e}"),
    };
    format!("{op} ({shape}, {dtype}): {what}")
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn a_row_says_what_was_found() {
        let found = Finding::worst("rope", "3 x 4", DType::F32, [("value, CPU".into(), 3e-4, 1e-5)]);
        let row = row(&found);
        assert!(
            row.contains("3.0e-4") && row.contains("1.0e-5") && row.contains("MISSED") && row.contains("value, CPU")
        );
        assert_eq!(sentence(&found), "rope (3 x 4, f32): 3.0e-4 at value, CPU, at most 1.0e-5");
        let failed = Finding::failed("rope", "3 x 4", DType::BF16, "no kernel\nof that name");
        assert_eq!(sentence(&failed), "rope (3 x 4, bf16): no kernel");
    }

    #[test]
    fn what_is_no_number_is_null() {
        let found = Finding::worst("rope", "", DType::F32, [("value".into(), f64::INFINITY, 1e-5)]);
        let json = serde_json::to_value(Row::from(&found)).unwrap();
        assert_eq!((json["error"].is_null(), json["passed"].as_bool()), (true, Some(false)));
    }
}
