//! The curves as a picture: PSNR of both sides over the timesteps, and the gap between them as an area at the foot.

use std::fmt::Write as _;

use windowpane_diffusion::psnr_gap::PsnrGap;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 48.0;

/// An SVG file.
pub(crate) fn svg(gap: &PsnrGap) -> String {
    let last = gap.timesteps.last().copied().unwrap_or(0).max(1) as f64;
    let highest = gap.train.curve.iter().chain(&gap.test.curve).fold(10.0, |top: f64, &v| top.max(v));
    let top = (highest / 10.0).ceil() * 10.0;
    let x = |t: f64| MARGIN + t / last * (WIDTH - 2.0 * MARGIN);
    let y = |db: f64| HEIGHT - MARGIN - db.clamp(0.0, top) / top * (HEIGHT - 2.0 * MARGIN);
    let points = |curve: &[f64]| {
        let pairs = gap.timesteps.iter().zip(curve);
        pairs.map(|(&t, &db)| format!("{:.1},{:.1}", x(t as f64), y(db))).collect::<Vec<_>>().join(" ")
    };
    let mut body = String::new();
    let mut add = |line: String| writeln!(body, "{line}").expect("a string takes every line: this is a bug");
    for db in (0..=top as u32).step_by(10) {
        let (level, right, label) = (y(f64::from(db)), WIDTH - MARGIN, MARGIN - 6.0);
        add(format!(r##"<line x1="{MARGIN}" y1="{level:.1}" x2="{right}" y2="{level:.1}" stroke="#ddd"/>"##));
        add(format!(r#"<text x="{label}" y="{:.1}" text-anchor="end">{db}</text>"#, level + 4.0));
    }
    for part in 0..=5 {
        let t = last * f64::from(part) / 5.0;
        let below = HEIGHT - MARGIN + 18.0;
        add(format!(r#"<text x="{:.1}" y="{below}" text-anchor="middle">{t:.0}</text>"#, x(t)));
    }
    let area = format!("{:.1},{:.1} {} {:.1},{:.1}", x(0.0), y(0.0), points(&gap.curve), x(last), y(0.0));
    add(format!(r##"<polygon points="{area}" fill="#e0a030" fill-opacity="0.5"/>"##));
    for (curve, colour, name, row) in [
        (&gap.train.curve, "#1f5fa8", "training images", 0.0),
        (&gap.test.curve, "#b03a2e", "held-out images", 1.0),
    ] {
        add(format!(
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            points(curve)
        ));
        let (left, line) = (WIDTH - MARGIN, MARGIN + 14.0 + 16.0 * row);
        add(format!(r#"<text x="{left}" y="{line}" text-anchor="end" fill="{colour}">{name}</text>"#));
    }
    let (middle, foot) = (WIDTH / 2.0, HEIGHT - 10.0);
    add(format!(r#"<text x="{middle}" y="{foot}" text-anchor="middle">timestep</text>"#));
    add(format!(r#"<text x="{middle}" y="24" text-anchor="middle">{gap}</text>"#));
    add(format!(r#"<text x="{MARGIN}" y="{}" text-anchor="middle">dB</text>"#, MARGIN - 10.0));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}
