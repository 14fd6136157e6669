// The parts of the module, one a feature.
#pragma once

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include <pybind11/stl.h>

#include "memory.h"
#include "shim.h"

void bind_spam(pybind11::module_& m);
void bind_norm(pybind11::module_& m);
void bind_prm(pybind11::module_& m);
