//! PSNR over the noise level as a plot: a curve with its interval for each set, and the gap between them as an area at the
//! foot. The same figure as SVG and as pixels.

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
            let [low, high] = gap.interval;
            format!("PSNR gap {:.2} dB ({low:.2} - {high:.2})", gap.gap)
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
            .label("gap")
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
