//! The table of all kernels and devices, and how a new one compares with the committed one.

use std::fmt::Write as _;

use crate::Row;

/// The devices, by the names that RADV gives them.
pub const DEVICES: [(&str, crate::listing::Generation); 3] = [
    ("navi31", crate::listing::Generation::Rdna3),
    ("navi21", crate::listing::Generation::Rdna2),
    ("polaris10", crate::listing::Generation::Gcn),
];

/// The table in Markdown; `rows` of each device in the order of the devices.
pub fn markdown(driver: &str, rows: &[Vec<Row>]) -> String {
    let mut text = format!(
        "# Machine code of the kernels\n\nWritten by `benches/isa/check --bless`. Driver: {driver}. A cell: vector registers/waves a SIMD, \
        **share** of the peak of multiply-adds that the hot loop allows when nothing is waited for.\n`vmem`: spilled registers + bytes of scratch, of all \
        devices. `shared`: bytes of workgroup memory. `lines`: 128-byte lines that the loads of a wave of 64 touch for each of its multiply-adds.\nThe last \
        column, on {}: multiply-adds / vector instructions / of these at a quarter of the rate / scalar / buffer / workgroup memory / waits.\n\n| kernel |",
        DEVICES[1].0
    );
    text.extend(DEVICES.iter().map(|(name, _)| format!(" {name} |")));
    text.push_str(" vmem | shared | lines | hot loop |\n|---|---|---|---|---|---|---|---|\n");
    for (at, row) in rows[1].iter().enumerate() {
        let of = |device: &Vec<Row>| device.iter().find(|r| r.label == row.label).cloned();
        let _ = write!(text, "| {} |", row.label);
        for device in rows {
            let _ = match of(device) {
                Some(r) => write!(text, " {}/{} **{}** |", r.registers, r.waves, r.share),
                None => write!(text, " - |"),
            };
        }
        let vmem: u64 = rows.iter().filter_map(of).map(|r| r.vmem).sum();
        let lines = row.lines.map_or("-".to_owned(), |l| format!("{l:.2}"));
        let n = rows[1][at].hot;
        let hot = [n.fma, n.vector(), n.quarter, n.scalar, n.buffer, n.shared, n.waits]
            .map(|n| n.to_string());
        let _ = writeln!(text, " {vmem} | {} | {lines} | {} |", row.shared, hot.join("/"));
    }
    text
}

/// Shares of a table by kernel, in the order of the devices; what is absent is zero.
fn shares(table: &str) -> Vec<(&str, Vec<u32>)> {
    let cells =
        |line: &'_ str| line.split('|').map(str::trim).map(str::to_owned).collect::<Vec<_>>();
    let mut all = Vec::new();
    for line in table.lines().filter(|l| l.starts_with("| ") && l.contains("**")) {
        let label = line.split('|').nth(1).unwrap_or("").trim();
        let share =
            |cell: &String| cell.split("**").nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        all.push((label, cells(line)[2..2 + DEVICES.len()].iter().map(share).collect()));
    }
    all
}

/// What is wrong with a table beside the committed one.
pub fn faults(committed: &str, rows: &[Vec<Row>], same_driver: bool) -> Vec<String> {
    let mut faults = Vec::new();
    let known = shares(committed);
    for ((at, (device, _)), rows) in (0..).zip(DEVICES).zip(rows) {
        for row in rows {
            if row.vmem > 0 {
                faults.push(format!("{} on {device} spills, or uses scratch", row.label));
            }
            let before =
                known.iter().find(|(label, _)| *label == row.label).map(|(_, shares)| shares[at]);
            if let Some(before) = before.filter(|&before| same_driver && row.share < before) {
                faults.push(format!(
                    "{} on {device} allows {} % of the peak, the table {before} %",
                    row.label, row.share
                ));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listing::Counts;

    fn row(label: &str, share: u32, vmem: u64) -> Row {
        let (label, hot) = (label.to_owned(), Counts::default());
        Row { label, registers: 40, waves: 12, share, vmem, shared: 0, lines: Some(0.25), hot }
    }

    #[test]
    fn shares_survive_the_table() {
        let rows = vec![vec![row("a f32", 90, 0)], vec![row("a f32", 91, 0)], vec![]];
        let text = markdown("Mesa", &rows);
        assert_eq!(shares(&text), [("a f32", vec![90, 91, 0])]);
        assert!(faults(&text, &rows, true).is_empty());
    }

    #[test]
    fn less_than_committed_is_a_fault() {
        let text =
            markdown("Mesa", &[vec![row("a f32", 90, 0)], vec![row("a f32", 91, 0)], vec![]]);
        let worse = vec![vec![row("a f32", 89, 0)], vec![row("a f32", 91, 8)], vec![]];
        assert_eq!(faults(&text, &worse, true).len(), 2);
        assert_eq!(faults(&text, &worse, false), ["a f32 on navi21 spills, or uses scratch"]);
    }
}
