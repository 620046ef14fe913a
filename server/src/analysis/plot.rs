//! PSNR over the noise level as a plot: a curve with its interval for each set, and the gap between them, where it is more
//! than 0, as an area at the foot. Above it stands the gap as the paper has it, and without clipping. The same figure as SVG
//! and as pixels.

use std::cell::RefCell;
use std::rc::Rc;

use plotters::coord::Shift;
use plotters::prelude::*;
use windowpane_diffusion::psnr_gap::Psnr;

use super::canvas::Canvas;
use super::psnr_gap::Measured;
use crate::encode::Picture;

/// Width and height.
const SIZE: (u32, u32) = (760, 480);

/// Of the training images, the held-out images and the gap: told apart by those who do not see red and green apart (Okabe
/// and Ito 2008).
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(230, 159, 0)];

/// A figure could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("the plot: {0}")]
pub struct PlotError(String);

/// As an SVG file.
pub fn svg(measured: &Measured) -> Result<String, PlotError> {
    let mut text = String::new();
    draw(&SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), measured)?;
    Ok(text)
}

/// As pixels.
pub fn picture(measured: &Measured) -> Result<Picture, PlotError> {
    let canvas = Rc::new(RefCell::new(Canvas::new(SIZE.0 as usize, SIZE.1 as usize)));
    draw(&DrawingArea::from(&canvas), measured)?;
    let canvas = Rc::into_inner(canvas).ok_or_else(|| PlotError("somebody still draws on it".to_owned()))?;
    Ok(canvas.into_inner().into_picture())
}

fn draw<B: DrawingBackend>(area: &DrawingArea<B, Shift>, measured: &Measured) -> Result<(), PlotError> {
    drawn(area, measured).map_err(|error| PlotError(error.to_string()))
}

fn drawn<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    measured: &Measured,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let (timesteps, sides, gap): (_, Vec<(&str, &Psnr)>, _) = match measured {
        Measured::One { timesteps, psnr } => (timesteps, vec![("PSNR", psnr)], None),
        Measured::Two(gap) => {
            (&gap.timesteps, vec![("training images", &gap.train), ("held-out images", &gap.test)], Some(gap))
        }
    };
    let caption = match measured {
        Measured::One { psnr, .. } => {
            let [low, high] = psnr.interval;
            format!("PSNR {:.2} dB ({low:.2} - {high:.2}), {} images", psnr.mean, psnr.images)
        }
        Measured::Two(gap) => {
            let ([low, high], [least, most]) = (gap.interval, gap.unclipped_interval);
            format!(
                "PSNR gap {:.2} dB ({low:.2} - {high:.2}) clipped at 0, {:.2} dB ({least:.2} - {most:.2}) unclipped",
                gap.gap, gap.unclipped
            )
        }
    };
    area.fill(&WHITE)?;
    let last = timesteps.last().copied().unwrap_or(0).max(1) as f64;
    let highest =
        sides.iter().flat_map(|(_, psnr)| &psnr.intervals).map(|[_, high]| *high).fold(10.0, f64::max);
    let lowest = sides.iter().flat_map(|(_, psnr)| &psnr.intervals).map(|[low, _]| *low).fold(0.0, f64::min);
    let tens = |db: f64| db / 10.0;
    let range = tens(lowest).floor() * 10.0..tens(highest).ceil() * 10.0;
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..last, range)?;
    chart
        .configure_mesh()
        .x_desc("timestep")
        .light_line_style(WHITE)
        .x_label_formatter(&|t| format!("{t:.0}"))
        .y_label_formatter(&|db| format!("{db:.0} dB"))
        .draw()?;
    let at = |i: usize| timesteps.get(i).map_or(0.0, |&t| t as f64);
    if let Some(gap) = gap {
        let curve = gap.curve.iter().enumerate().map(|(i, &db)| (at(i), db));
        let area = AreaSeries::new(curve, 0.0, COLOURS[2].mix(0.5)).border_style(COLOURS[2]);
        chart
            .draw_series(area)?
            .label("gap, clipped at 0")
            .legend(|(x, y)| Rectangle::new([(x, y - 4), (x + 18, y + 4)], COLOURS[2].mix(0.5).filled()));
    }
    for ((name, psnr), colour) in sides.iter().zip(COLOURS) {
        let low = psnr.intervals.iter().enumerate().map(|(i, [low, _])| (at(i), *low));
        let high = psnr.intervals.iter().enumerate().rev().map(|(i, [_, high])| (at(i), *high));
        chart.draw_series([Polygon::new(low.chain(high).collect::<Vec<_>>(), colour.mix(0.25).filled())])?;
        let curve = psnr.curve.iter().enumerate().map(|(i, &db)| (at(i), db));
        let line = chart.draw_series(LineSeries::new(curve, colour.stroke_width(2)))?;
        line.label(format!("{name} {:.2} dB", psnr.mean))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        // As wide as the canvas's own letters, whatever the font of a drawing.
        .label_font(("sans-serif", 18))
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE)
        .draw()?;
    area.present()
}

#[cfg(test)]
mod tests {
    use windowpane_diffusion::psnr_gap::PsnrGap;

    use super::*;

    /// A set that is 30 and 20 dB, and one that is 20 and 0.
    fn measured() -> Measured {
        let side = |images, curve: [f64; 2]| Psnr {
            images,
            mean: f64::midpoint(curve[0], curve[1]),
            interval: curve,
            curve: curve.to_vec(),
            intervals: vec![[curve[0]; 2], [curve[1]; 2]],
        };
        Measured::Two(PsnrGap {
            gap: 15.0,
            interval: [14.25, 15.75],
            unclipped: 14.5,
            unclipped_interval: [-0.5, 15.5],
            timesteps: vec![0, 999],
            curve: vec![10.0, 20.0],
            train: side(8, [30.0, 20.0]),
            test: side(9, [20.0, 0.0]),
        })
    }

    /// What stands behind `name="` in an element.
    fn attribute<'a>(element: &'a str, name: &str) -> &'a str {
        let (_, rest) =
            element.split_once(&format!(" {name}=\"")).unwrap_or_else(|| panic!("{name} of {element}"));
        rest.split('"').next().unwrap_or_default()
    }

    /// The elements of this name that have this colour, as they are written.
    fn elements<'a>(svg: &'a str, name: &str, colour: RGBColor) -> Vec<&'a str> {
        let RGBColor(r, g, b) = colour;
        let of = format!("\"#{r:02X}{g:02X}{b:02X}\"");
        let all = svg.split('<').filter(|element| element.starts_with(&format!("{name} ")));
        all.filter(|element| element.contains(&of)).collect()
    }

    fn points(element: &str) -> Vec<[f64; 2]> {
        let pairs = attribute(element, "points").split_whitespace();
        pairs
            .map(|pair| {
                let (x, y) = pair.split_once(',').unwrap();
                [x, y].map(|number| number.parse().unwrap())
            })
            .collect()
    }

    /// The height at which these words stand.
    fn height(svg: &str, words: &str) -> f64 {
        let text = svg.split('<').find(|element| element.starts_with("text ") && element.contains(words));
        attribute(text.unwrap_or_else(|| panic!("no {words} in {svg}")), "y").parse().unwrap()
    }

    #[test]
    fn each_curve_has_the_heights_of_its_own_set_and_the_colour_that_its_name_has() {
        let svg = svg(&measured()).unwrap();
        let near = |a: f64, b: f64| (a - b).abs() <= 1.0;
        // In the legend a line stands beside a name.
        let [train, test] =
            [("training images 25.00 dB", 0), ("held-out images 10.00 dB", 1)].map(|(name, i)| {
                let lines: Vec<_> = elements(&svg, "polyline", COLOURS[i]).into_iter().map(points).collect();
                let [curve, legend] = lines.as_slice() else { panic!("{lines:?} of {svg}") };
                assert!(near(legend[0][1], legend[1][1]), "{legend:?}");
                // Words are placed by their upper edge, lines by their middle.
                let above = legend[0][1] - height(&svg, name);
                assert!((0.0..=14.0).contains(&above), "{name}: {above} of {svg}");
                curve.clone()
            });
        // From 30 dB above to 0 below: the middle two are a third apart.
        let third = (test[1][1] - train[0][1]) / 3.0;
        assert!(third > 100.0, "{train:?} {test:?}");
        assert!(
            near(train[1][1], train[0][1] + third) && near(test[0][1], train[1][1]),
            "{train:?} {test:?}"
        );
        assert!(train[0][0] == test[0][0] && train[1][0] == test[1][0] && train[0][0] < train[1][0]);
        // Likewise the gap: 10 and 20 above nothing.
        let area = elements(&svg, "polygon", COLOURS[2]);
        let gap = points(area.first().unwrap_or_else(|| panic!("{svg}")));
        for [x, y] in [[train[0][0], test[0][1] + third], [train[1][0], train[1][1]]] {
            assert!(gap.iter().any(|point| near(point[0], x) && near(point[1], y)), "{x} {y} of {gap:?}");
        }
    }

    #[test]
    fn both_gaps_are_named_with_their_intervals() {
        let svg = svg(&measured()).unwrap();
        let words = "PSNR gap 15.00 dB (14.25 - 15.75) clipped at 0, 14.50 dB (-0.50 - 15.50) unclipped";
        assert!(svg.contains(words) && svg.contains("gap, clipped at 0"), "{svg}");
    }
}
