"""The engine: gradients of every task at the last shared layer, in one ordinary backward pass."""

from equipoise.engine._attach import Attached as Attached
from equipoise.engine._attach import attach as attach
from equipoise.engine._columns import Columns as Columns
from equipoise.engine._combination import Arrived as Arrived
from equipoise.engine._combination import Combination as Combination
from equipoise.engine._examination import Examination as Examination
from equipoise.engine._examination import examined as examined
from equipoise.engine._exchange import Processes as Processes
from equipoise.engine._fork import Fork as Fork
from equipoise.engine._per_loss import PerLoss as PerLoss
from equipoise.engine._reach import check_separable as check_separable
from equipoise.engine._source import Source as Source
from equipoise.engine._source import task_names as task_names
