"""The words everything else is written in: plain types without I/O, importing nothing else of the
package."""
